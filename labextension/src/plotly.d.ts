// The part of Plotly that is used.

declare module "plotly.js-basic-dist-min" {
  export interface PlotElement extends HTMLElement {
    on(event: string, listener: (event: never) => void): void;
    removeAllListeners(event?: string): void;
    layout?: { xaxis?: { range?: [number, number]; autorange?: boolean } };
  }
  const Plotly: {
    react(
      element: HTMLElement,
      traces: object[],
      layout: object,
      config: object,
    ): Promise<PlotElement>;
    purge(element: HTMLElement): void;
    Plots: { resize(element: HTMLElement): void };
  };
  export default Plotly;
}
