// The panel as a widget of a notebook: the entry that anywidget loads.

import { CommTransport } from "./panel/comm.js";
import { h, say } from "./panel/dom.js";
import { type Panel as Mounted, mount } from "./panel/mount.js";
import type { Run } from "./panel/types.js";
import { findWay, pageBaseUrl, type Way } from "./panel/way.js";

interface Model {
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
  send(message: unknown): void;
  // biome-ignore lint/suspicious/noExplicitAny: what an event brings depends on its name
  on(event: string, listener: (...brought: any[]) => void): void;
  // biome-ignore lint/suspicious/noExplicitAny: as above
  off(event: string, listener: (...brought: any[]) => void): void;
  widget_manager?: { kernel?: Kernel | null };
}

/** JupyterLab's, as far as it is needed here; other pages may have none. */
interface Kernel {
  statusChanged?: { connect(told: KernelStatus): void; disconnect(told: KernelStatus): void };
}
type KernelStatus = (kernel: unknown, status: string) => void;

/** What the kernel is told at most so often. */
const SAVE_EVERY = 250;
const GONE =
  "The kernel was restarted or has ended. Run the panel's cell again to use it from Python.";
const LOST = new Set(["restarting", "autorestarting", "terminating", "dead"]);

function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const widget = new Widget(model, el);
  return () => widget.dispose();
}

/** A view of the widget: looks for its server, and mounts the panel on the way that it finds. */
class Widget {
  private readonly note = h("p", { class: "jt-way", role: "status", style: "margin: 4px 0" });
  private mounted: { panel: Mounted; mirror: Mirror; transport: CommTransport | null } | null =
    null;
  private searching: AbortController | null = null;
  private why = "";
  private readonly select = () => this.selected();
  private readonly search = () => void this.begin();
  private readonly living: KernelStatus = (_, status) => {
    if (LOST.has(status)) this.lose();
  };
  private readonly kernel: Kernel | null;

  constructor(
    private readonly model: Model,
    private readonly element: HTMLElement,
  ) {
    element.append(this.note);
    model.on("change:run", this.select);
    model.on("change:server_id", this.search);
    this.kernel = model.widget_manager?.kernel ?? null;
    this.kernel?.statusChanged?.connect(this.living);
    void this.begin();
  }

  dispose(): void {
    this.searching?.abort();
    this.model.off("change:run", this.select);
    this.model.off("change:server_id", this.search);
    this.kernel?.statusChanged?.disconnect(this.living);
    this.unmount();
    this.note.remove();
  }

  private get url(): string {
    return String(this.model.get("server_url") || "");
  }

  private async begin(): Promise<void> {
    this.searching?.abort();
    this.searching = new AbortController();
    const { signal } = this.searching;
    this.unmount();
    const baseUrl = pageBaseUrl();
    const wanted = { url: this.url, id: String(this.model.get("server_id") || "") };
    const way = await findWay(wanted, baseUrl, (why) => say(this.note, why), signal);
    // Closed meanwhile, or begun anew.
    if (!signal.aborted) this.go(way, baseUrl ?? "");
  }

  private go(way: Way, baseUrl: string): void {
    this.why = way === "none" ? nowhere(baseUrl) : way === "kernel" ? detour(this.url) : "";
    say(this.note, this.why);
    if (way === "none") return;
    const transport = way === "kernel" ? new CommTransport(this.model) : null;
    const mirror = new Mirror(this.model);
    const panel = mount(this.element, {
      baseUrl,
      run: this.model.get("run") as string | null,
      kernel: this.model.get("kernel_id") as string,
      onChange: ({ run }, shown) => mirror.update(run, shown),
      ...(transport ? { transport } : {}),
    });
    this.mounted = { panel, mirror, transport };
    if (transport) transport.onWaiting = (waiting) => this.waits(waiting);
  }

  private unmount(): void {
    const { mounted } = this;
    this.mounted = null;
    mounted?.mirror.dispose();
    mounted?.panel.dispose();
    mounted?.transport?.dispose();
  }

  private selected(): void {
    const { mounted } = this;
    if (mounted?.mirror.saving) return;
    mounted?.panel.select((this.model.get("run") as string | null) || null);
  }

  private waits(waiting: boolean): void {
    const busy = " It is busy now, and what you ask for waits until its cell is done.";
    say(this.note, waiting ? this.why + busy : this.why);
  }

  /** Watching and steering go on without the kernel, unless they go through it. */
  private lose(): void {
    this.why = GONE;
    say(this.note, GONE);
    this.mounted?.transport?.end(GONE);
  }
}

const nowhere = (baseUrl: string) =>
  baseUrl
    ? `The Jupyter server at ${baseUrl} of this page has no Tinker API, and the kernel knows no other: ` +
      "use %tinker connect URL, and run this cell again."
    : "This page is not served by a Jupyter server, and the kernel knows none: use %tinker connect URL, " +
      "and run this cell again.";

const detour = (url: string) =>
  `This page does not come from ${url}, so the panel goes through the kernel. While a cell runs, ` +
  "changes wait for it, unless the kernel answers beside it.";

/** Keeps the model as the run is. */
class Mirror {
  saving = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private next: Record<string, unknown> = {};

  constructor(private readonly model: Model) {}

  update(chosen: string | null, run: Run | null): void {
    this.next = { run: chosen, ...stateOf(run) };
    this.timer ??= setTimeout(() => this.save(), SAVE_EVERY);
  }

  dispose(): void {
    clearTimeout(this.timer);
  }

  private save(): void {
    this.timer = undefined;
    const changed = Object.entries(this.next).filter(
      ([name, value]) => JSON.stringify(this.model.get(name)) !== JSON.stringify(value),
    );
    if (changed.length === 0) return;
    this.saving = true;
    for (const [name, value] of changed) this.model.set(name, value);
    this.saving = false;
    this.model.save_changes();
  }
}

function stateOf(run: Run | null): Record<string, unknown> {
  if (run === null) return {};
  return {
    current_run: run.run_id,
    state: run.state,
    step: run.last_step?.step ?? 0,
    loss: run.last_step?.loss_mean ?? null,
    learning_rate_scale: run.controls.learning_rate_scale,
    learning_rate: run.controls.learning_rate,
    grad_clip_norm: run.controls.grad_clip_norm,
    weight_decay: run.controls.weight_decay,
    paused: run.controls.paused,
  };
}

export default { render };
