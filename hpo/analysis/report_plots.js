// Unpacks Plotly's library and the figures (gzip in base 85, with `,` in the place of `<`) and draws the figures.
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
