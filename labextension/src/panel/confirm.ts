// Asks before something is done that is not undone by a click.

import { h } from "./dom.js";

export interface Choices {
  title: string;
  /** What it would be done to. */
  about: string;
  text: string;
  /** What each button says, and does; "Cancel" is there besides. */
  actions: Record<string, () => void>;
}

/** Open a dialog in `parent`. Esc and "Cancel" do nothing. */
export function confirm(parent: HTMLElement, { title, about, text, actions }: Choices): void {
  const id = `jt-${Math.random().toString(36).slice(2)}`;
  const heading = h("strong", { id }, title);
  const object = h("p", { id: `${id}-of`, class: "jt-hint" }, about);
  const close = () => dialog.close();
  const buttons = Object.entries(actions).map(([name, act]) =>
    h(
      "button",
      {
        type: "button",
        click: () => {
          close();
          act();
        },
      },
      name,
    ),
  );
  const cancel = h("button", { type: "button", click: close }, "Cancel");
  const dialog = h(
    "dialog",
    {
      class: "jt-dialog",
      "aria-labelledby": `${heading.id} ${object.id}`,
      close: () => dialog.remove(),
    },
    heading,
    object,
    h("p", {}, text),
    h("div", { class: "jt-group" }, ...buttons, cancel),
  );
  parent.append(dialog);
  dialog.showModal();
}
