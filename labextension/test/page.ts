// What jsdom lacks of a page, and a Plotly that only remembers. Import this file before what draws.

/** Observers that were made, and have not been disconnected. */
export const observing = new Set<object>();

class FakeObserver {
  constructor(readonly notify: (entries: { isIntersecting: boolean }[]) => void) {}

  observe(): void {
    observing.add(this);
  }

  disconnect(): void {
    observing.delete(this);
  }
}

const media = { addEventListener: () => {}, removeEventListener: () => {} };

Object.assign(globalThis, {
  IntersectionObserver: FakeObserver,
  ResizeObserver: FakeObserver,
  matchMedia: () => media,
});
Object.defineProperty(HTMLElement.prototype, "clientWidth", { get: () => 700 });

export interface Drawn {
  element: HTMLElement;
  traces: Record<string, unknown>[];
  // biome-ignore lint/suspicious/noExplicitAny: Plotly's, of which tests look at a part
  layout: any;
}

/** Drawings, the newest last; what listens to a plot, by the event's name; elements that were purged. */
export const drawn: Drawn[] = [];
export const listening = new Map<string, (event: unknown) => void>();
export const purged: HTMLElement[] = [];

const plotly = {
  async react(element: HTMLElement, traces: Drawn["traces"], layout: object) {
    drawn.push({ element, traces, layout });
    const plot = {
      layout,
      on: (name: string, told: (event: unknown) => void) => listening.set(name, told),
      removeAllListeners: () => listening.clear(),
    };
    return Object.assign(element, plot);
  },
  purge: (element: HTMLElement) => purged.push(element),
};

jest.mock("plotly.js-basic-dist-min", () => ({ __esModule: true, default: plotly }));

// Its parser knows no CSS of these years, and complains at length.
jest.mock("../src/panel/style.js", () => ({ __esModule: true, STYLE: "" }));

beforeEach(() => {
  drawn.length = 0;
  purged.length = 0;
  listening.clear();
});
