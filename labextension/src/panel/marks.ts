// What happened to a run, as vertical lines through its curves.

import type { Theme } from "./theme.js";
import type { TinkerEvent } from "./types.js";
import { label, sentence } from "./words.js";

const MOST_LINES = 200;
const MOST_LABELS = 8;

export interface Mark {
  step: number;
  text: string;
  whole: string;
  grave: boolean;
}

/** Marks of events, those of the same step as one; the newest last. */
export function marksOf(events: readonly TinkerEvent[]): Mark[] {
  const marks: Mark[] = [];
  for (const event of events) {
    const text = label(event);
    if (!text || event.step === null) continue;
    const last = marks[marks.length - 1];
    if (last?.step === event.step) {
      last.text = last.text === text ? text : `${last.text}, ${text}`;
      last.whole += `<br>${sentence(event)}`;
      last.grave ||= event.kind === "guard";
    } else {
      const grave = event.kind === "guard";
      marks.push({ step: event.step, text, whole: sentence(event), grave });
    }
  }
  return marks.slice(-MOST_LINES);
}

/** Plotly's shapes and annotations for marks; only labels that have room beside the next are shown. */
export function drawnMarks(marks: readonly Mark[], theme: Theme, room: number) {
  const colour = (mark: Mark) => (mark.grave ? theme.error : theme.muted);
  const shapes = marks.map((mark) => ({
    type: "line",
    xref: "x",
    yref: "paper",
    x0: mark.step,
    x1: mark.step,
    y0: 0,
    y1: 1,
    line: { color: colour(mark), width: 1, dash: "dash" },
  }));
  const labelled: Mark[] = [];
  for (const mark of [...marks].reverse()) {
    if (labelled.length >= MOST_LABELS) break;
    if (labelled.every((other) => Math.abs(other.step - mark.step) >= room)) labelled.push(mark);
  }
  const annotations = labelled.map((mark) => ({
    xref: "x",
    yref: "paper",
    x: mark.step,
    y: 1,
    yanchor: "top",
    xanchor: "left",
    textangle: 90,
    showarrow: false,
    text: cut(mark.text),
    hovertext: mark.whole,
    captureevents: true,
    bgcolor: theme.ground,
    font: { size: 10, color: colour(mark) },
  }));
  return { shapes, annotations };
}

const cut = (text: string) => (text.length > 30 ? `${text.slice(0, 29)}…` : text);
