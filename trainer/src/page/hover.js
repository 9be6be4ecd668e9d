// Shows the values below the pointer beside the names of the curves. All else works without.
for (const figure of document.querySelectorAll("figure[data-x]")) {
  const svg = figure.querySelector("svg");
  const [x0, x1, left, right] = figure.dataset.x.split(" ").map(Number);
  const [y0, y1, top, bottom] = figure.dataset.y.split(" ").map(Number);
  const logarithmic = "log" in figure.dataset;
  const curves = [...figure.querySelectorAll(".key li")].map((entry) => ({
    output: entry.querySelector("output"),
    points: [...svg.querySelectorAll(`polyline[stroke="${entry.dataset.colour}"]`)]
      .map((line) => line.getAttribute("points").trim().split(/\s+/).map((p) => p.split(",").map(Number)))
      .sort((a, b) => b.length - a.length)[0],
  })).filter((curve) => curve.points);
  const x_of = (pixel) => x0 + ((pixel - left) / (right - left)) * (x1 - x0);
  const y_of = (pixel) => {
    const share = (bottom - pixel) / (bottom - top);
    return logarithmic ? y0 * (y1 / y0) ** share : y0 + share * (y1 - y0);
  };
  const short = (value) =>
    Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3)).replace("-", "−");
  const at = figure.querySelector(".at");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  line.setAttribute("stroke", "#555555");
  line.setAttribute("stroke-width", 4);
  const clear = () => {
    line.remove();
    at.textContent = "";
    for (const { output } of curves) output.textContent = "";
  };
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const pixel = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    if (pixel < left || pixel > right) return clear();
    for (const [name, value] of [["x1", pixel], ["x2", pixel], ["y1", top], ["y2", bottom]]) line.setAttribute(name, value);
    svg.append(line);
    at.textContent = `${figure.dataset.axis} ${short(x_of(pixel))}`;
    for (const { output, points } of curves) {
      const nearest = points.reduce((a, b) => (Math.abs(b[0] - pixel) < Math.abs(a[0] - pixel) ? b : a));
      const beyond = pixel - points[points.length - 1][0] > (right - left) / 20;
      output.textContent = beyond ? "" : short(y_of(nearest[1]));
    }
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", clear);
}
