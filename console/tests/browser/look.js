// Looks at a page in frames of two widths; leaves what is wrong with it, and what it counted, as JSON in the document.
const wrong = [], counts = {};
const text = node => node.textContent.trim();
const overlap = (a, b) =>
  Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;

function figures(page, width) {
  for (const svg of page.querySelectorAll("figure svg")) {
    const name = text(svg.closest("figure").querySelector("figcaption")).slice(0, 40), box = svg.getBoundingClientRect();
    const words = [...svg.querySelectorAll("text")].filter(word => text(word) !== "");
    const boxes = words.map(word => word.getBoundingClientRect());
    boxes.forEach((one, i) => {
      if (one.left < box.left - 1 || one.right > box.right + 1 || one.top < box.top - 1 || one.bottom > box.bottom + 1)
        wrong.push(`${width}: "${text(words[i])}" leaves the figure "${name}"`);
      for (let j = i + 1; j < boxes.length; j++)
        if (overlap(one, boxes[j])) wrong.push(`${width}: "${text(words[i])}" and "${text(words[j])}" overlap in "${name}"`);
    });
    const marks = [...svg.querySelectorAll("circle, rect, polyline, path")].filter(mark => {
      const place = mark.getBoundingClientRect();
      return place.width > 0 && place.left >= box.left && place.right <= box.right && place.top >= box.top && place.bottom <= box.bottom;
    });
    if (words.length === 0 || marks.length === 0) wrong.push(`${width}: the figure "${name}" is empty`);
    if (svg.getAttribute("aria-hidden") !== "true") wrong.push(`the marks of "${name}" are read out one by one`);
  }
}

function structure(page) {
  const one = (selector, root = page) => root.querySelectorAll(selector).length === 1;
  if (!one("h1") || !one("main") || !one("title") || !one("meta[name=viewport]")) wrong.push("title, h1, main or viewport");
  if (page.documentElement.lang === "") wrong.push("no language");
  for (const section of page.querySelectorAll("main > section:not([aria-label])"))
    if (!one("h2", section)) wrong.push("a section without a heading");
  for (const figure of page.querySelectorAll("figure"))
    if (!figure.getAttribute("aria-label") || text(figure.querySelector("figcaption")) === "") wrong.push("a figure without a name");
  for (const table of page.querySelectorAll("table")) {
    if (!table.caption || text(table.caption) === "") wrong.push("a table without a caption");
    const columns = table.tHead.rows[0].cells.length;
    if ([...table.tHead.rows[0].cells].some(cell => cell.scope !== "col")) wrong.push("a heading without a scope");
    for (const row of table.tBodies[0].rows) {
      if (row.cells.length !== columns) wrong.push(`a row of ${row.cells.length} cells below ${columns} headings`);
      if (row.cells[0].scope !== "row") wrong.push("a row without a heading");
    }
  }
  for (const node of page.querySelectorAll("[src], [href], link, object, embed"))
    wrong.push(`${node.tagName} needs something from outside`);
  counts.figures = page.querySelectorAll("figure svg").length;
  counts.tables = page.querySelectorAll("table").length;
  counts.details = page.querySelectorAll("details").length;
}

function luminance(color) {
  const part = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = color.match(/[\d.]+/g).map(Number);
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
}

function contrast(page, view) {
  const style = view.getComputedStyle(page.body);
  const [low, high] = [luminance(style.color), luminance(style.backgroundColor)].sort((a, b) => a - b);
  counts.contrast = (high + 0.05) / (low + 0.05);
  counts.dark = luminance(style.backgroundColor) < 0.2;
  for (const word of page.querySelectorAll("figure svg text"))
    if (view.getComputedStyle(word).fill !== style.color) wrong.push(`"${text(word)}" in a figure has not the colour of text`);
}

function sorting(page) {
  for (const table of page.querySelectorAll("table")) {
    const button = table.tHead.rows[0].cells[table.tHead.rows[0].cells.length - 1].querySelector("button");
    const column = table.tHead.rows[0].cells.length - 1;
    const numbers = () => [...table.tBodies[0].rows].map(row => row.cells[column].dataset.number).filter(n => n !== undefined).map(Number);
    const before = [...table.tBodies[0].rows].length;
    button.click();
    const up = numbers();
    button.click();
    const down = numbers();
    if (up.some((n, i) => i > 0 && up[i - 1] > n) || down.some((n, i) => i > 0 && down[i - 1] < n) || table.tBodies[0].rows.length !== before)
      wrong.push(`"${text(table.caption).slice(0, 40)}" is not sorted`);
    if (table.tHead.rows[0].cells[column].getAttribute("aria-sort") !== "descending") wrong.push("sorting is not told to screen readers");
  }
}

function finding(page, view) {
  counts.searchable = page.querySelectorAll(".find").length;
  for (const place of page.querySelectorAll(".find")) {
    const rows = [...place.nextElementSibling.querySelector("tbody").rows], field = place.querySelector("input");
    const type = words => { field.value = words; field.dispatchEvent(new view.Event("input")); };
    type(text(rows[0].cells[0]));
    if (rows[0].hidden) wrong.push("a row is not found by its name");
    type("no row has these words");
    if (rows.some(row => !row.hidden)) wrong.push("a row is found by words that it has not");
    type("");
    if (rows.some(row => row.hidden)) wrong.push("rows stay hidden");
  }
}

function look(frame, width) {
  const page = frame.contentDocument, view = frame.contentWindow;
  if (page.documentElement.scrollWidth > width) wrong.push(`${width}: the page is ${page.documentElement.scrollWidth} wide`);
  figures(page, width);
  if (width < 500) return;
  structure(page);
  contrast(page, view);
  sorting(page);
  finding(page, view);
}

const widths = [360, 1100];
let left = widths.length;
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 800px; border: 0`;
  frame.addEventListener("load", () => {
    try { look(frame, width); } catch (error) { wrong.push(`${width}: ${error}`); }
    if (--left === 0) {
      const result = document.createElement("pre");
      result.id = "result";
      result.textContent = JSON.stringify({ wrong, ...counts });
      document.body.append(result);
    }
  });
  frame.src = "page.html";
  document.body.append(frame);
}
