// A run's dashboard: the panel of the notebooks, as a tab of JupyterLab.

import { TabPanel, Widget } from "@lumino/widgets";
import { h } from "../panel/dom.js";
import type { Panel } from "../panel/mount.js";
import type { Choice } from "../panel/picker.js";
import { tinkerIcon } from "./icon.js";
import { shortName } from "./news.js";
import type { ITinker } from "./tinker.js";

export class Dashboard extends Widget {
  /** The run that is shown, whether it was named or is the one that started last. */
  shown: string | null = null;
  private panel: Panel | null = null;

  constructor(
    private readonly tinker: ITinker,
    public choice: Choice,
    private readonly changed: (dashboard: Dashboard) => void,
  ) {
    super();
    this.addClass("jp-Tinker-dashboard");
    this.title.icon = tinkerIcon;
    this.title.iconClass = "jp-Tinker-tabIcon";
    this.title.closable = true;
    this.name();
    void this.mount();
  }

  override dispose(): void {
    this.panel?.dispose();
    this.panel = null;
    super.dispose();
  }

  protected override onActivateRequest(): void {
    // Notebook shows the area below its document, but leaves there the tab that was in front.
    const tabs = this.parent?.parent;
    if (tabs instanceof TabPanel) tabs.currentWidget = this;
    this.node.tabIndex = -1;
    if (!this.node.contains(document.activeElement)) this.node.focus();
  }

  /** The curves' library is loaded only once somebody looks at some. */
  private async mount(): Promise<void> {
    const loaded = await import("../panel/mount.js").catch(() => null);
    if (this.isDisposed) return;
    if (loaded === null) {
      this.sayNotLoaded();
      return;
    }
    const { mount } = loaded;
    const { run, compared } = this.choice;
    this.panel = mount(this.node, {
      baseUrl: this.tinker.baseUrl,
      run,
      compared,
      shortcuts: true,
      onChange: (choice, shown) => this.follow(choice, shown?.run_id ?? null),
    });
  }

  private sayNotLoaded(): void {
    const again = () => {
      this.node.replaceChildren();
      void this.mount();
    };
    const text =
      "The dashboard could not be loaded: the server does not answer, or has another version of it " +
      "by now. If it is not there at the second try either, reload the page.";
    this.node.replaceChildren(
      h(
        "p",
        { class: "jp-Tinker-hint", role: "alert" },
        `${text} `,
        h("button", { type: "button", class: "jp-Tinker-button", click: again }, "Try again"),
      ),
    );
  }

  private follow(choice: Choice, shown: string | null): void {
    const before = JSON.stringify([this.choice, this.shown]);
    this.choice = choice;
    this.shown = shown;
    if (JSON.stringify([choice, shown]) === before) return;
    this.name();
    this.changed(this);
  }

  private name(): void {
    const { run, compared } = this.choice;
    const id = run ?? this.shown;
    const more = compared.length ? ` + ${compared.length}` : "";
    this.title.label = run === null ? `Newest run${more}` : `Run ${shortName(run)}${more}`;
    this.title.caption = id === null ? "Tinker: no run yet" : `Tinker: ${id}${more}`;
  }
}
