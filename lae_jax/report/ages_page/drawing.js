// Boxes over a photograph, and a face's distribution: SVG, with a text for those who do not see it.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 420;
const HEIGHT = 96;
const BASE = 76; // where the plot's axis is
const SIDE = 12; // room for the labels of ages 0 and 100

function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Boxes in pixels of the photograph; their numbers where there are several.
export function boxes(faces, width, height) {
  const largest = Math.max(width, height);
  const shapes = faces.flatMap((face) => {
    const [left, top, right, bottom] = face.box;
    // On the box's corner, and small beside the face, as long as it can be read.
    const size = Math.min(Math.max(0.2 * (right - left), largest / 50), largest / 22);
    const place = { x: left, y: top, width: right - left, height: bottom - top };
    const outlines = [svg("rect", { ...place, class: "outline under" }), svg("rect", { ...place, class: "outline" })];
    if (faces.length === 1) return outlines;
    const x = Math.min(Math.max(left, size), width - size);
    const y = Math.min(Math.max(top, size), height - size);
    const number = svg("text", { x, y, class: "number", "font-size": size * 1.2 }, `${face.face}`);
    return [...outlines, svg("circle", { cx: x, cy: y, r: size, class: "tag" }), number];
  });
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...shapes);
}

export function plot(face) {
  const x = (age) => SIDE + (age / 100) * (WIDTH - 2 * SIDE);
  const top = Math.max(...face.distribution);
  const y = (probability) => BASE - (probability / top) * (BASE - 6);
  const line = face.distribution.map((p, age) => `${x(age).toFixed(1)},${y(p).toFixed(1)}`).join(" L");
  const parts = [
    svg("path", { class: "area", d: `M${x(0)},${BASE} L${line} L${x(100)},${BASE}Z` }),
    svg("line", { class: "axis", x1: x(0), x2: x(100), y1: BASE, y2: BASE }),
    svg("line", { class: "mean", x1: x(face.age), x2: x(face.age), y1: 2, y2: BASE }),
  ];
  const { interval } = face;
  if (interval) {
    const place = { x: x(interval.lower), width: x(interval.upper) - x(interval.lower), y: 2, height: BASE - 2 };
    parts.unshift(svg("rect", { class: "range", ...place }));
  }
  for (let age = 0; age <= 100; age += 20) parts.push(svg("text", { x: x(age), y: BASE + 16 }, `${age}`));
  const likeliest = face.distribution.indexOf(top);
  const sure = interval ? `, ${interval.lower.toFixed(0)} to ${interval.upper.toFixed(0)} in the interval` : "";
  const told = `Distribution over the ages 0 to 100: mean ${face.age.toFixed(1)}, most likely ${likeliest}${sure}.`;
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "plot", role: "img", "aria-label": told }, ...parts);
}
