"""The frame of a report: the page, its style, and its scripts, of which one sorts tables and one draws plots."""

from __future__ import annotations

from string import Template

STYLE = """
:root { color-scheme: light dark; --text: #1f2937; --soft: #6b7280; --page: #f8fafc; --card: #fff;
  --line: #e5e7eb; --mark: #eff6ff; --accent: #2563eb; --warn: #b45309; }
@media (prefers-color-scheme: dark) { :root { --text: #e5e7eb; --soft: #9ca3af; --page: #0f172a;
  --card: #1e293b; --line: #334155; --mark: #1e3a5f; --accent: #93c5fd; --warn: #fbbf24; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 60rem; color: var(--text); background: var(--page);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: break-word; }
h1 { margin: 0 0 1.25rem; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.75rem 0 .75rem; font-size: 1.25rem; }
h3 { margin: 0 0 .5rem; font-size: 1rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr));
  gap: .75rem; margin: 0; }
.facts div, .card { padding: .75rem 1rem; border: 1px solid var(--line); border-radius: .6rem;
  background: var(--card); }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-weight: 600; }
dd.soft { font-weight: 400; font-size: .8rem; }
.findings { padding-left: 1.25rem; }
.findings li { margin: .4rem 0; }
.findings li::marker { color: var(--warn); }
.plot, .missing { margin: 0 0 1rem; }
.plot { padding: 1rem; border: 1px solid var(--line); border-radius: .6rem; background: #fff;
  color: #1f2937; }
.wide { overflow-x: auto; }
.wide.card { width: fit-content; max-width: 100%; }
.broad .figure { min-width: 36rem; }
.soft { color: var(--soft); }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem; border-bottom: 1px solid var(--line); text-align: left;
  white-space: nowrap; }
td.long { min-width: 14rem; white-space: normal; }
th { color: var(--soft); font-weight: 600; white-space: normal; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort] { color: var(--accent); }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
tr.best td { background: var(--mark); font-weight: 600; }
pre { overflow-x: auto; font-size: .8rem; }
summary { cursor: pointer; }
"""

# Empty cells sort last either way; numbers sort by `data-v`, all else by its text.
SORT = """
document.querySelectorAll("th button").forEach(button => button.onclick = () => {
  const head = button.parentNode, body = head.closest("table").tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending";
  head.parentNode.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => { const cell = row.cells[head.cellIndex];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v); };
  const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b));
  [...body.rows].sort((x, y) => { const a = key(x), b = key(y);
    if (a === "" || b === "") return (a === "") - (b === "");
    return down ? order(b, a) : order(a, b); }).forEach(row => body.append(row));
});
"""

# Plotly's library is 5 MB. It and the figures are compressed by gzip, and written in base 85, `,` in the place of `<`.
DRAW = """
const unpacked = id => {
  const text = document.getElementById(id).textContent, missing = (5 - text.length % 5) % 5;
  const view = new DataView(new ArrayBuffer((text.length + missing) / 5 * 4));
  const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
  const values = new Map([...digits].map((digit, value) => [digit.charCodeAt(0), value]));
  for (let i = 0; i < text.length; i += 5) {
    let value = 0;
    for (let j = i; j < i + 5; j++) value = value * 85 + (j < text.length ? values.get(text.charCodeAt(j)) : 84);
    view.setUint32(i / 5 * 4, value);
  }
  const bytes = new Blob([new Uint8Array(view.buffer, 0, view.byteLength - missing)]);
  return new Response(bytes.stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
const draw = async () => {
  const script = document.createElement("script");
  script.textContent = await unpacked("library");
  document.head.append(script);
  for (const [id, {figure, config}] of Object.entries(JSON.parse(await unpacked("figures"))))
    await Plotly.newPlot(id, figure.data, figure.layout, config);
};
draw().catch(error => document.querySelectorAll(".figure:empty").forEach(place => {
  place.textContent = `Not drawn by this browser (${error}). Open the report in a newer one.`; }));
"""

# The policy makes it certain, not just intended, that an opened report asks nothing of the network.
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
$body
<script>$sort</script>
<script type="text/plain" id="library">$library</script>
<script type="text/plain" id="figures">$figures</script>
<script>$draw</script>
</body>
</html>
""")
