"use strict";
// Draws the curves; without it the page shows the same numbers as tables.
const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = [...document.querySelectorAll(".plot")];

for (const plot of plots) {
  const { data, layout } = figures[plot.dataset.chart];
  plot.hidden = false;
  Plotly.newPlot(plot, data, layout, { displayModeBar: false, responsive: true });
  plot.parentElement.querySelector("details").open = false;
}

// Charts have a size of their own, so paper needs one that fits it.
const resize = (size) => plots.forEach((plot) => Plotly.relayout(plot, size));
addEventListener("beforeprint", () => resize({ width: 640, height: 220 }));
addEventListener("afterprint", () => resize({ width: null, height: null, autosize: true }));
