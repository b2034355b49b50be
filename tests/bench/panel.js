// What a page tells of its panel to tests/bench/panel.py: when things are painted.
(() => {
  const bench = { painted: [], touched: [], drawn: 0, began: 0, visible: null };
  window.tinkerBench = bench;
  const channel = new MessageChannel();
  const soon = [];
  channel.port1.onmessage = () => soon.shift()?.();
  // A message that is posted in a frame comes after that frame was painted.
  const afterPaint = (work) =>
    requestAnimationFrame(() => {
      soon.push(work);
      channel.port2.postMessage(0);
    });

  /** From now on note the newest step of each drawing, and when it was painted. */
  bench.watch = () => {
    const chart = document.querySelector(".jt-chart");
    chart.on("plotly_afterplot", () => {
      const x = chart.data.find(({ name }) => name === "loss")?.x;
      const step = x?.[x.length - 1];
      bench.drawn += 1;
      if (step === undefined) return;
      afterPaint(() => bench.painted.push([step, Date.now() / 1000]));
    });
    const slider = document.querySelector(".jt-panel input[aria-label^='Learning rate scale, log']");
    slider.addEventListener("input", () => bench.touched.push(Date.now() / 1000), true);
  };

  /** Run a cell; `visible` is then the milliseconds until its panel with its curves is painted. */
  bench.show = (index) => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = index;
    bench.visible = null;
    const cell = notebook.widgets[index].node;
    const before = cell.querySelector(".jt-panel");
    const began = performance.now();
    window.jupyterapp.commands.execute("notebook:run-cell");
    const look = () => {
      const panel = cell.querySelector(".jt-panel");
      if (panel && panel !== before && panel.querySelector(".main-svg .lines path")) {
        afterPaint(() => {
          bench.visible = performance.now() - began;
        });
      } else {
        requestAnimationFrame(look);
      }
    };
    look();
  };
})();
