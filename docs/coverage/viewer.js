// Shows what docs/tools/reach.py wrote for a release: tables with one search box. Needs no network and no server.
"use strict";
(() => {
  const root = document.getElementById("reach");
  const releases = [...document.querySelectorAll("table")][0].tBodies[0].rows;
  const names = [...releases].map((row) => row.cells[0].textContent.trim());
  const asked = new URLSearchParams(location.search);

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  const counted = (sites) => Object.entries(sites).map(([name, count]) => `${name} ${count}`).join(", ");
  const model = (path) => path.replace(/^models\//, "").replace(/\.py$/, "");

  // What was compared of a file, in words.
  function numbers(row) {
    if (!row) return "";
    if (!row.compared) return `${row.state}: ${row.reason}`;
    const told = [`${row.state}: ${row.compared} comparisons, ${row.generations} of tokens (${row.classes.join(", ")})`];
    for (const [mode, cases] of Object.entries(row.deviating))
      if (cases.length) told.push(`deviates ${mode}: ${cases.join(", ")}`);
    for (const [what, why] of Object.entries(row.without)) told.push(`stock itself cannot do ${what}: ${why}`);
    return told.join("; ");
  }

  function sections({ reach, numbers: found }) {
    const rows = Object.fromEntries((found ? found.rows : []).map((row) => [row.path, row]));
    const head = found ? ["small model", "edited functions that ran", "ops that took a call"] : [];
    const files = Object.entries(reach.sites).map(([path, sites]) => {
      const row = rows[path];
      const ran = row && row.compared ? [`${row.ran} of ${row.functions}`, row.ops.join(", ")] : ["", ""];
      return [model(path), counted(sites), ...(found ? [numbers(row), ...ran] : [])];
    });
    const declined = reach.table.flatMap((one) =>
      Object.entries(one.declined).sort((a, b) => b[1] - a[1]).map(([why, times]) => [one.recipe, times, why]));
    return [
      ["Recipes", ["recipe", "files", "sites", "declined", "what it looks for"],
        reach.table.map((one) => [one.recipe, one.files.applied, one.sites,
          Object.values(one.declined).reduce((a, b) => a + b, 0), one.description])],
      ["Files", ["file", "edited places", ...head], files],
      ["Declined, by reason", ["recipe", "times", "reason"], declined],
      ["Lost since the release before", ["place", "release before", "what", "why"],
        reach.lost.map((one) => [`${model(one.path)}:${one.line || ""} ${one.qualname}`, one.release, one.what, one.reason])],
    ];
  }

  function table([title, head, body]) {
    const cells = (tag, texts) => texts.map((text) => element(tag, { textContent: text }));
    const rows = body.map((texts) => element("tr", {}, ...cells("td", texts)));
    const count = element("span");
    const whole = element("details", { open: title === "Files" || title === "Recipes", className: "reach" },
      element("summary", {}, `${title}: `, count),
      element("table", {}, element("thead", {}, element("tr", {}, ...cells("th", head))), element("tbody", {}, ...rows)));
    return { whole, filter(words) {
      let shown = 0;
      for (const row of rows) {
        const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = shown === rows.length ? `${shown}` : `${shown} of ${rows.length}`;
    } };
  }

  const release = element("select", { id: "reach-release", ariaLabel: "release" },
    ...names.map((name) => element("option", { textContent: name })));
  const find = element("input", { id: "reach-find", type: "search", placeholder: "search, e.g. qwen3", ariaLabel: "search" });
  const out = element("div");
  release.value = names.includes(asked.get("release")) ? asked.get("release") : names[names.length - 1];
  find.value = asked.get("find") || "";
  root.replaceChildren(element("p", {}, release, " ", find), out);

  let tables = [];
  const filter = () => tables.forEach((one) => one.filter(find.value.toLowerCase().split(/\s+/).filter(Boolean)));
  window.showReach = (found) => {
    if (found.reach.release !== release.value) return; // another release was chosen while this one was loading
    tables = sections(found).map(table);
    out.replaceChildren(...tables.map((one) => one.whole));
    filter();
  };
  const load = () => {
    const script = element("script", { src: `coverage/${release.value}.js` });
    script.onerror = () => { out.textContent = `coverage/${release.value}.js cannot be read.`; };
    document.head.append(script);
  };
  release.addEventListener("change", load);
  find.addEventListener("input", filter);
  load();
})();
