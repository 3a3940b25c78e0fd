"use strict";
// Draws the curves; without it the page shows the same numbers as tables.
const element = (id) => document.getElementById(id);
const plots = [...document.querySelectorAll(".plot")];

// The chart library and the curves stand in the page compressed, so that the page stays small,
// and in base 85: five of these digits are four bytes, and a last group that is cut gives fewer.
const digits =
  "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%,()*+-;.=/?@^_`{|}~";

function bytesOf(text) {
  const values = new Uint8Array(128);
  for (let value = 0; value < 85; value++) values[digits.charCodeAt(value)] = value;
  const groups = Math.ceil(text.length / 5);
  const whole = text.padEnd(5 * groups, "~");
  const bytes = new DataView(new ArrayBuffer(4 * groups));
  for (let group = 0; group < groups; group++) {
    let word = 0;
    for (let i = 5 * group; i < 5 * group + 5; i++) word = 85 * word + values[whole.charCodeAt(i)];
    bytes.setUint32(4 * group, word);
  }
  return bytes.buffer.slice(0, Math.floor((text.length * 4) / 5));
}

async function unpacked(id) {
  const bytes = bytesOf(element(id).textContent);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

async function draw() {
  if (typeof DecompressionStream === "undefined") {
    element("no-unpacking").hidden = false;
    return;
  }
  const library = document.createElement("script");
  library.textContent = await unpacked("library");
  document.body.append(library); // runs at once; the page's policy holds the digest of its text
  const figures = JSON.parse(await unpacked("figures"));
  for (const plot of plots) {
    const { data, layout } = figures[plot.dataset.chart];
    plot.hidden = false;
    await Plotly.newPlot(plot, data, layout, { displayModeBar: false, responsive: true });
    plot.parentElement.querySelector("details").open = false;
  }
  // Charts have a size of their own, so paper needs one that fits it.
  const resize = (size) => plots.forEach((plot) => Plotly.relayout(plot, size));
  addEventListener("beforeprint", () => resize({ width: 640, height: 220 }));
  addEventListener("afterprint", () => resize({ width: null, height: null, autosize: true }));
}

const drawing = draw(); // a promise: who looks at the curves from outside waits for it
