// The panel as a widget of a notebook: the entry that anywidget loads.

import { type Panel as Mounted, mount } from "./panel/mount.js";
import type { Run } from "./panel/types.js";

interface Model {
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
  on(event: string, listener: () => void): void;
  off(event: string, listener: () => void): void;
}

/** What the kernel is told at most so often. */
const SAVE_EVERY = 250;

function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const baseUrl = jupyterBaseUrl();
  if (baseUrl === null) {
    const url = model.get("server_url") || "the Jupyter server of this kernel";
    el.textContent =
      "This page is not served by a Jupyter server, so the panel cannot reach " +
      `${url}. Open the notebook in JupyterLab there, or use jupyter_tinker.run().`;
    return () => {};
  }
  const mirror = new Mirror(model);
  const panel: Mounted = mount(el, {
    baseUrl,
    run: model.get("run") as string | null,
    kernel: model.get("kernel_id") as string,
    onChange: ({ run }, shown) => mirror.update(run, shown),
  });
  const selected = () => {
    if (!mirror.saving) panel.select((model.get("run") as string | null) || null);
  };
  model.on("change:run", selected);
  return () => {
    model.off("change:run", selected);
    mirror.dispose();
    panel.dispose();
  };
}

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

function jupyterBaseUrl(): string | null {
  const config = document.getElementById("jupyter-config-data")?.textContent;
  if (!config) return null;
  const url = JSON.parse(config).baseUrl;
  return typeof url === "string" ? url.replace(/\/*$/, "/") : null;
}

export default { render };
