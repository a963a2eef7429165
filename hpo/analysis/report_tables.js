// Sorts a table by a column. Empty cells come last in both directions; numbers sort by `data-v`, other cells by text.
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
