// The sidebar's keys: made, shown once, and revoked.

import { h, say } from "../panel/dom.js";
import { Frame, type Section } from "./section.js";
import type { LabTransport } from "./transport.js";
import type { Key } from "./types.js";
import { when } from "./words.js";

export interface KeysActions {
  /** Whether a person really wants a key revoked. */
  confirm(name: string): Promise<boolean>;
  copy(text: string): void;
}

export class KeysSection implements Section {
  readonly element: HTMLElement;
  private readonly frame: Frame;
  private readonly list = h("ul", { "aria-label": "Keys" });
  private readonly none = h(
    "p",
    { class: "jp-Tinker-hint" },
    "No key. A key opens the Tinker API of this server, and nothing else.",
  );
  private readonly name = h("input", {
    type: "text",
    class: "jp-Tinker-input",
    placeholder: "a name",
    "aria-label": "Name of a new key",
    maxlength: 100,
    required: true,
  });
  private readonly secret = h("div", { class: "jp-Tinker-secret", role: "status", hidden: true });
  private readonly fault = h("p", { class: "jp-Tinker-fault", role: "alert" });
  private asked = false;

  constructor(
    private readonly transport: Pick<LabTransport, "get" | "post" | "delete">,
    private readonly actions: KeysActions,
  ) {
    const form = h(
      "form",
      {
        class: "jp-Tinker-tools",
        submit: (event) => {
          event.preventDefault();
          void this.create();
        },
      },
      this.name,
      h("button", { type: "submit", class: "jp-Tinker-button" }, "Create key"),
    );
    const shown = [this.none, this.list, form, this.secret, this.fault];
    this.frame = new Frame("Keys", shown, () => void this.load());
    this.element = this.frame.element;
  }

  /** Keys change by hand only, so they are asked for when they come into sight. */
  show(): void {
    if (this.asked || !this.frame.open) return;
    this.asked = true;
    void this.load();
  }

  dispose(): void {
    this.hideSecret();
  }

  private async load(): Promise<void> {
    await this.doing(async () => {
      const { keys } = await this.transport.get<{ keys: Key[] }>("keys");
      const open = keys.filter((key) => key.revoked_at === null);
      const closed = keys.filter((key) => key.revoked_at !== null).slice(-5);
      this.frame.say(open.length ? `${open.length} open` : "");
      this.none.hidden = open.length > 0;
      this.list.replaceChildren(...[...open, ...closed].reverse().map((key) => this.row(key)));
    });
  }

  private row(key: Key): HTMLElement {
    const name = h("span", { class: "jp-Tinker-keyname" }, key.name);
    const made = `made ${when(key.created_at)}`;
    if (key.revoked_at !== null) {
      const told = h("span", { class: "jp-Tinker-from" }, `revoked ${when(key.revoked_at)}`);
      return h("li", { class: "jp-Tinker-line", "data-revoked": "true", title: made }, name, told);
    }
    const revoke = h(
      "button",
      {
        type: "button",
        class: "jp-Tinker-small",
        "aria-label": `Revoke the key ${key.name}`,
        click: () => void this.revoke(key.name),
      },
      "Revoke…",
    );
    const told = h("span", { class: "jp-Tinker-from" }, made);
    return h("li", { class: "jp-Tinker-line" }, name, told, revoke);
  }

  private async create(): Promise<void> {
    const name = this.name.value;
    const made = await this.doing(async () => {
      const { key } = await this.transport.post<{ key: string }>("keys", { name });
      this.name.value = "";
      this.showSecret(name, key);
    });
    if (!made) return;
    await this.load();
    this.secret.scrollIntoView({ block: "nearest" }); // the list has grown above it
  }

  private async revoke(name: string): Promise<void> {
    if (!(await this.actions.confirm(name))) return;
    this.hideSecret();
    const path = `keys/${encodeURIComponent(name)}`;
    if (await this.doing(() => this.transport.delete(path))) await this.load();
  }

  private showSecret(name: string, key: string): void {
    const text = h("code", { tabindex: 0 }, key);
    const copy = h("button", { type: "button", class: "jp-Tinker-button" }, "Copy");
    copy.addEventListener("click", () => {
      this.actions.copy(key);
      say(copy, "Copied");
    });
    const hide = h(
      "button",
      { type: "button", class: "jp-Tinker-button", click: () => this.hideSecret() },
      "Hide",
    );
    const why = h(
      "p",
      {},
      `The key ${name}. It is shown this once; the server keeps its hash only.`,
    );
    this.secret.replaceChildren(why, text, h("div", { class: "jp-Tinker-tools" }, copy, hide));
    this.secret.hidden = false;
    copy.focus();
  }

  private hideSecret(): void {
    this.secret.hidden = true;
    this.secret.replaceChildren();
  }

  /** Whether it could be done; why it was refused is said. */
  private async doing(work: () => Promise<unknown>): Promise<boolean> {
    try {
      await work();
      say(this.fault, "");
      return true;
    } catch (error) {
      say(this.fault, error instanceof Error ? error.message : String(error));
      return false;
    }
  }
}
