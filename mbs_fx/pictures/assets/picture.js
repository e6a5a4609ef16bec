// A picture that folds and unfolds.  The drawings of boxes and folded groups come ready; Graphviz, the same
// WebAssembly that placed them in Python, finds new places in a column whenever a group in it is opened or closed, and
// `pack` (pictures/columns.py) places the columns in rows as wide as the window.

const unpack = async (id) => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
};

// Graphviz asks its host for little: no files, no environment, and nobody reads what it prints.
async function startGraphviz(bytes) {
  let wasm;
  const view = () => new DataView(wasm.memory.buffer);
  const none = 0, badFile = 8;
  const host = {
    environ_sizes_get: (count, size) => (view().setUint32(count, 0, true), view().setUint32(size, 0, true), none),
    environ_get: () => none,
    clock_time_get: (_clock, _precision, out) => (view().setBigUint64(out, 0n, true), none),
    random_get: () => none,
    proc_exit: (code) => { throw new Error(`Graphviz stopped with ${code}`); },
    fd_write: (_file, parts, count, written) => {
      let total = 0;
      for (let i = 0; i < count; i++) total += view().getUint32(parts + 8 * i + 4, true);
      view().setUint32(written, total, true);
      return none;
    },
  };
  const imports = new Proxy(host, { get: (known, name) => known[name] ?? (() => badFile) });
  wasm = (await WebAssembly.instantiate(bytes, { wasi_snapshot_preview1: imports })).instance.exports;
  const put = (text) => {
    const data = new TextEncoder().encode(text + "\0");
    const at = wasm.malloc(data.length);
    new Uint8Array(wasm.memory.buffer).set(data, at);
    return at;
  };
  return (dot) => {
    const held = [put(dot), put("json0"), put("dot"), wasm.malloc(4)];
    const at = wasm.graphviz_render(...held);
    if (!at) throw new Error("Graphviz cannot lay this out");
    const data = new Uint8Array(wasm.memory.buffer, at, view().getUint32(held[3], true)).slice();
    wasm.graphviz_free(at);
    held.forEach((each) => wasm.free(each));
    return JSON.parse(new TextDecoder().decode(data));
  };
}

const escaped = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

const BETWEEN = 34, UNDER = 12, LANE = 9, STEP = 11, CORNER = 5;

// A path through corners, each rounded.
function rounded(points) {
  const towards = ([x, y], [u, v]) => {
    const length = Math.max(Math.abs(u - x), Math.abs(v - y), 1e-9), reach = Math.min(CORNER, length / 2) / length;
    return `${x + (u - x) * reach},${y + (v - y) * reach}`;
  };
  const corners = points.slice(1, -1).map((p, i) => `L${towards(p, points[i])} Q${p} ${towards(p, points[i + 2])}`);
  return [`M${points[0]}`, ...corners, `L${points.at(-1)}`].join(" ");
}

// Columns in rows no wider than `room`, and lines [tail, head] between them.
function pack(sizes, lines, room) {
  const rows = [[]];
  let used = 0;
  sizes.forEach(({ width }, i) => {
    if (rows.at(-1).length && used + width > room) { rows.push([]); used = 0; }
    rows.at(-1).push(i);
    used += width + BETWEEN;
  });
  const rowOf = rows.flatMap((members, row) => members.map(() => row));
  const level = (a, b) => [Math.max(a.top, b.top), Math.min(a.bottom, b.bottom)];
  const isStraight = ([a, b]) => b === a + 1 && rowOf[a] === rowOf[b] && level(sizes[a], sizes[b])[1] > level(sizes[a], sizes[b])[0];
  const unique = [...new Map(lines.map((line) => [`${line}`, line])).values()];
  const bent = unique.filter((line) => !isStraight(line))
    .sort(([a, b], [c, d]) => Math.abs(b - a) - Math.abs(d - c) || a - c || b - d);
  const far = bent.filter(([a, b]) => ![0, 1].includes(rowOf[b] - rowOf[a]));
  const left = LANE * far.length + (far.length ? UNDER : 0), lanes = {}, taken = {}, ends = {}, curves = {}, places = [];
  for (const line of bent) {
    for (const row of far.includes(line) ? [rowOf[line[0]], rowOf[line[1]] - 1] : [rowOf[line[0]]]) lanes[row] = (lanes[row] ?? 0) + 1;
  }
  let y = lanes[-1] ? UNDER + LANE * lanes[-1] : 0;
  const below = [0];
  rows.forEach((members, row) => {
    let x = left;
    for (const i of members) {
      const { width, left: near, top, right, bottom } = sizes[i];
      places.push({ row, x, y, width, left: x + near, top: y + top, right: x + right, bottom: y + bottom });
      x += width + BETWEEN;
    }
    y += Math.max(...members.map((i) => sizes[i].height));
    below.push(y + UNDER);
    y += UNDER + LANE * (lanes[row] ?? 0) + (row + 1 < rows.length || lanes[row] ? UNDER : 0);
  });
  for (const [a, b] of unique.filter(isStraight)) {
    const [high, low] = level(places[a], places[b]), at = (high + low) / 2;
    curves[[a, b]] = `M${places[a].right},${at} L${places[b].left - 1},${at}`;
  }
  const lane = (row) => below[row + 1] + LANE * ((taken[row] = (taken[row] ?? 0) + 1) - 1);
  const end = (name) => STEP * (ends[name] = (ends[name] ?? 0) + 1);
  for (const line of bent) {
    const [a, b] = line, tail = places[a], head = places[b];
    const x = tail.right - end(`out${a}`), to = head.left + STEP + end(`in${b}`);
    const points = [[x, tail.bottom], [x, lane(tail.row)]];
    if (far.includes(line)) {
      const gutter = left - UNDER - LANE * far.indexOf(line);
      points.push([gutter, points.at(-1)[1]], [gutter, lane(head.row - 1)]);
    }
    points.push([to, points.at(-1)[1]], [to, head.row === tail.row ? head.bottom + 1 : head.top - 1]);
    curves[line] = rounded(points);
  }
  return {
    width: Math.max(...places.map((place) => place.x + place.width)),
    height: y - (lanes[rows.length - 1] ? 0 : UNDER),
    places, curves,
  };
}

class Picture {
  constructor(data, canvas, facts) {
    Object.assign(this, data, { canvas, factsPanel: facts, zoom: 1, atPlan: true, listeners: [], inside: {} });
    this.column = {};
    this.columns.forEach((keys, i) => keys.forEach((key) => (this.column[key] = i)));
    for (const [key, item] of Object.entries(this.items)) if (item.parent) this.column[key] = this.column[item.parent];
    this.keys = Object.keys(this.items);
    this.number = Object.fromEntries(this.keys.map((key, i) => [key, i]));
    this.open = new Set(data.opened);
    this.chosen = null;
    canvas.addEventListener("click", (event) => this.clicked(event.target));
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); this.clicked(event.target); }
    });
    this.dress();
  }

  clicked(target) {
    const group = target.closest("[data-group]"), box = target.closest("[data-box]");
    if (box) return this.choose(`b${box.dataset.box}`);
    return group && this.items[group.dataset.group].children.length ? this.toggle(group.dataset.group) : undefined;
  }

  ancestors(key) {
    const found = [];
    for (let up = this.items[key].parent; up; up = this.items[up].parent) found.push(up);
    return found;
  }

  // The item that stands for another in what is shown now.
  shown(key) {
    const closed = this.ancestors(key).filter((up) => !this.open.has(up));
    return closed.length ? closed[closed.length - 1] : key;
  }

  async toggle(key) {
    const before = new Set(this.open);
    const was = this.element(key)?.getBoundingClientRect();
    if (!this.open.delete(key)) this.open.add(key);
    else for (const each of [...this.open]) if (this.ancestors(each).includes(key)) this.open.delete(each);
    if (!(await this.redraw())) { this.open = before; return; }
    const now = this.element(key)?.getBoundingClientRect();
    if (was && now) this.canvas.scrollBy(now.left - was.left, now.top - was.top);
    this.element(key)?.focus({ preventScroll: true });
  }

  // One level more or less; Infinity opens all, -Infinity closes all.
  async level(step) {
    const stages = [new Set(), ...this.stages.map((s) => new Set(s))];
    const current = stages.findLastIndex((s) => [...s].every((key) => this.open.has(key)));
    const next = Math.min(Math.max(current + step, 0), stages.length - 1);
    const before = this.open;
    this.open = stages[next];
    if (!(await this.redraw())) this.open = before;
  }

  async reveal(key) {
    const before = new Set(this.open);
    for (const up of this.ancestors(key)) this.open.add(up);
    if (!(await this.redraw())) { this.open = before; return; }
    this.choose(key);
    const at = this.element(key).getBoundingClientRect(), around = this.canvas.getBoundingClientRect();
    this.canvas.scrollBy(at.left + at.width / 2 - around.left - around.width / 2, at.top + at.height / 2 - around.top - around.height / 2);
  }

  element(key) {
    const find = (kind, value) => this.canvas.querySelector(`[data-${kind}="${CSS.escape(value)}"]`);
    return /^b\d+$/.test(key) ? find("box", key.slice(1)) : find("group", key);
  }

  // Edges between shown items of a column, and between columns, which go by their first items.
  edges_now() {
    const found = new Map();
    for (const [a, b, main] of this.edges) {
      const from = this.column[a], to = this.column[b], crosses = from !== to;
      const tail = crosses ? this.columns[from][0] : this.shown(a), head = crosses ? this.columns[to][0] : this.shown(b);
      if (tail === head) continue;
      const old = found.get(`${tail}>${head}`) ?? { tail, head, from, to, main: false, boundary: false };
      old.main ||= Boolean(main);
      old.boundary ||= this.side(a) === "base" && this.side(b) === "enhancement";
      found.set(`${tail}>${head}`, old);
    }
    return [...found.values()];
  }

  statement(key) {
    const item = this.items[key], n = this.number[key];
    if (!this.open.has(key)) return `${n}[width=${(item.w / 72).toFixed(4)} height=${(item.h / 72).toFixed(4)}];`;
    return `subgraph cluster_${n}{label=${JSON.stringify(item.name + "____")};${item.children.map((c) => this.statement(c)).join("")}}`;
  }

  // How wide rows may be: what the canvas shows at full size.
  room() { return this.canvas.clientWidth - 26; }

  async redraw() {
    const shown = this.keys.filter((key) => this.shown(key) === key && !this.open.has(key));
    if (shown.length > this.most) {
      this.say(`That would show ${shown.length} boxes, more than the ${this.most} that can be laid out. Fold other parts first.`);
      return false;
    }
    const edges = this.edges_now();
    const parts = [];
    try {
      for (const i of this.columns.keys()) parts.push(await this.within(i, edges.filter((e) => e.from === i && e.to === i)));
    } catch (error) {
      this.graphviz = undefined;
      this.say(`This cannot be laid out (${error.message}). Fold other parts first.`);
      return false;
    }
    this.paint(parts, pack(parts, edges.filter((e) => e.from !== e.to).map((e) => [e.from, e.to]), this.room()), edges);
    return true;
  }

  // The inside of a column, for what is open in it now.
  async within(index, edges) {
    const keys = this.columns[index], open = [...this.open].filter((key) => this.column[key] === index).sort();
    const name = `${index}:${open}`;
    if (!this.inside[name]) {
      const group = keys.find((key) => this.items[key].children.length || !/^b\d+$/.test(key));
      const item = this.items[keys[0]];
      const found = keys.length === 1 && !this.open.has(keys[0])
        ? { width: item.w, height: item.h, places: { [keys[0]]: [0, 0] }, frames: {}, curves: {} }
        : await this.placed(keys, edges);
      const [left, top, width, height] = found.frames[group] ??
        (group ? [...found.places[group], this.items[group].w, this.items[group].h] : [0, 0, found.width, found.height]);
      this.inside[name] = { ...found, left, top, right: left + width, bottom: top + height };
    }
    return this.inside[name];
  }

  // Graphviz's places for a column, moved so that what is drawn begins at the origin.
  async placed(keys, edges) {
    this.graphviz ??= startGraphviz(await (await unpack("graphviz")).arrayBuffer());
    const wires = edges.map((e) => `${this.number[e.tail]}->${this.number[e.head]}${e.main ? "[weight=20]" : ""};`);
    const found = (await this.graphviz)(`digraph{${this.settings}${keys.map((k) => this.statement(k)).join("")}${wires.join("")}}`);
    const tall = Number(found.bb.split(",")[3]);
    const names = {}, frames = {}, places = {}, curves = {};
    for (const each of found.objects ?? []) {
      if (each.name.startsWith("cluster_")) {
        const [left, bottom, right, top] = each.bb.split(",").map(Number);
        frames[this.keys[each.name.slice(8)]] = [left, tall - top, right - left, top - bottom];
      } else {
        const key = (names[each._gvid] = this.keys[each.name]), item = this.items[key];
        const [x, y] = each.pos.split(",").map(Number);
        places[key] = [x - item.w / 2, tall - y - item.h / 2];
      }
    }
    for (const each of found.edges ?? []) {
      const points = each.pos.split(" ").map((p) => p.split(","));
      const ordered = [...points.filter((p) => p[0] !== "e" && p[0] !== "s"), ...points.filter((p) => p[0] === "e")];
      curves[`${names[each.tail]}>${names[each.head]}`] = ordered.map((p) => [Number(p.at(-2)), tall - p.at(-1)]);
    }
    const boxes = [...Object.entries(places).map(([key, [x, y]]) => [x, y, this.items[key].w, this.items[key].h]), ...Object.values(frames)];
    const bends = Object.values(curves).flat().map(([x]) => x);
    const left = Math.min(...boxes.map(([x]) => x), ...bends), top = Math.min(...boxes.map(([, y]) => y));
    const move = (record, by) => Object.fromEntries(Object.entries(record).map(([key, value]) => [key, by(value)]));
    return {
      width: Math.max(...boxes.map(([x, , w]) => x + w), ...bends) - left,
      height: Math.max(...boxes.map(([, y, , h]) => y + h)) - top,
      places: move(places, ([x, y]) => [x - left, y - top]),
      frames: move(frames, ([x, y, w, h]) => [x - left, y - top, w, h]),
      curves: move(curves, (points) => points.map(([x, y]) => [x - left, y - top])),
    };
  }

  paint(parts, packing, edges) {
    const frames = [], pieces = [], curves = {};
    parts.forEach((part, i) => {
      const at = packing.places[i];
      for (const [key, [x, y, w, h]] of Object.entries(part.frames)) frames.push([key, at.x + x, at.y + y, w, h]);
      for (const [key, [x, y]] of Object.entries(part.places)) pieces.push(`<g transform="translate(${at.x + x},${at.y + y})">${this.items[key].svg}</g>`);
      for (const [pair, points] of Object.entries(part.curves)) {
        const [first, ...rest] = points.map(([x, y]) => `${at.x + x},${at.y + y}`);
        curves[pair] = `M${first} C${rest.slice(0, -1).join(" ")} L${rest.at(-1)}`;
      }
    });
    frames.sort((a, b) => this.items[a[0]].depth - this.items[b[0]].depth);
    const path = (e) => (e.from === e.to ? curves[`${e.tail}>${e.head}`] : packing.curves[[e.from, e.to]]);
    const lines = edges.map((e) => `<path class="edge${e.boundary ? " boundary" : ""}" d="${path(e)}"/>`);
    const svg = this.canvas.querySelector("svg");
    svg.dataset.width = packing.width;
    svg.dataset.height = packing.height;
    svg.setAttribute("viewBox", `0 0 ${packing.width} ${packing.height}`);
    svg.innerHTML = [this.markers, ...frames.map((f) => this.frame(...f)), ...lines, ...frames.map((f) => this.title(...f)), ...pieces].join("");
    this.dress();
  }

  frame(key, x, y, width, height) {
    const item = this.items[key], mark = item.parent ? "" : ` data-m="${item.m}"`;
    return `<g class="${item.frame}" data-group="${escaped(key)}"${mark} transform="translate(${x},${y})"><rect class="frame" width="${width}" height="${height}" rx="8"${item.stroke}/></g>`;
  }

  title(key, x, y, width) {
    const item = this.items[key], mark = item.parent ? "" : ` data-m="${item.m}"`;
    const note = item.note ? `<text class="beta" x="${width - 26}" y="17" text-anchor="end"${mark}>${escaped(item.note)}</text>` : "";
    return `<g class="heading" data-group="${escaped(key)}" transform="translate(${x},${y})"><text class="name" x="12" y="17">${escaped(item.names.find(([most]) => width >= most)?.[1] ?? "")}</text>${note}<path class="sign" d="M${width - 19},13 h8"/></g>`;
  }

  // What drawings cannot know beforehand: focus, signs, the present plan, the size on the screen.
  dress() {
    for (const each of this.canvas.querySelectorAll("g.fold, g.heading, g.box")) {
      each.setAttribute("tabindex", "0");
      each.setAttribute("role", "button");
    }
    for (const each of this.canvas.querySelectorAll("g.fold:not(:has(.sign))")) {
      if (this.items[each.dataset.group].children.length) each.insertAdjacentHTML("beforeend", this.plus);
    }
    this.listeners.forEach((listen) => listen(this));
    this.scale(this.zoom);
    this.mark();
  }

  side(key) { return this.sides[Number(key.slice(1))]; }

  scale(zoom) {
    const svg = this.canvas.querySelector("svg");
    this.zoom = Math.min(Math.max(zoom, 0.1), 4);
    svg.setAttribute("width", svg.dataset.width * this.zoom);
    svg.setAttribute("height", svg.dataset.height * this.zoom);
  }

  fit() {
    const svg = this.canvas.querySelector("svg");
    this.scale(Math.min((this.canvas.clientWidth - 28) / svg.dataset.width, (this.canvas.clientHeight - 28) / svg.dataset.height));
  }

  choose(key) {
    this.chosen = key;
    this.mark();
    const all = this.element(key)?.querySelector("title")?.textContent.split("\n") ?? [];
    const lines = all.filter((line) => this.atPlan || !line.startsWith("held-back"));
    const inputs = this.inputs[Number(key.slice(1))] ?? [];
    const why = this.whyWithError(Number(key.slice(1)));
    const link = (i) => `<button data-reveal="b${i}">${escaped(this.names[i])}</button>`;
    const more = inputs.length > 12 ? ` and ${inputs.length - 12} more` : "";
    this.factsPanel.innerHTML = `<b>${escaped(this.names[Number(key.slice(1))])}</b>${why ? `<p class="why">${escaped(why)}</p>` : ""}` +
      lines.map((l) => `<div>${escaped(l)}</div>`).join("") +
      (inputs.length ? `<div>reads ${inputs.slice(0, 12).map(link).join("")}${more}</div>` : "");
    for (const button of this.factsPanel.querySelectorAll("[data-reveal]")) button.onclick = () => this.reveal(button.dataset.reveal);
  }

  // The plan in words; the report puts the slider's in place of these.
  widthOf(box) { return this.widths[box]?.pair; }
  betaOf(macroblock) { return this.betas?.[macroblock]; }

  // The held-back error is that of the plan that was drawn.
  whyWithError(box) {
    const error = this.atPlan && this.widths[box]?.error;
    return [this.why(box), error && `held-back error ${error}`].filter(Boolean).join("; ");
  }

  // Why a layer's width is what it is.
  why(box) {
    const pair = this.widthOf(box), known = this.widths[box];
    if (!pair || !this.betas) return "";
    const [before, after] = pair, beta = this.betaOf(known.macroblock), times = beta.toFixed(3);
    const partners = known.shared.length ? `, shared with ${known.shared.slice(0, 3).join(", ")}${known.shared.length > 3 ? ` and ${known.shared.length - 3} more` : ""}` : "";
    if (known.kept) return `${before} stays: ${known.kept}`;
    if (before === after && beta === 1) return `${before} stays: β = 1 in m${known.macroblock}`;
    if (Math.ceil(beta * before - 1e-9) === after) return `${after} = ⌈${times} × ${before}⌉, β of m${known.macroblock}${partners}`;
    if (known.ratio > 1 && after % known.ratio === 0) return `${after} = ${known.ratio} × ${after / known.ratio}, the ratio by design to ${known.base}${partners}`;
    return `${after} of ${before}, where β = ${times} alone gives ${Math.ceil(beta * before - 1e-9)}: groups, rounding, or a width that was asked for${partners}`;
  }

  mark() {
    for (const each of this.canvas.querySelectorAll(".chosen, .source")) each.classList.remove("chosen", "source");
    if (!this.chosen) return;
    this.element(this.shown(this.chosen))?.classList.add("chosen");
    for (const i of this.inputs[Number(this.chosen.slice(1))] ?? []) this.element(this.shown(`b${i}`))?.classList.add("source");
  }

  search(text) {
    const wanted = text.trim().toLowerCase();
    const found = wanted ? this.names.findIndex((name) => name.toLowerCase().includes(wanted)) : -1;
    if (found >= 0) return this.reveal(`b${found}`);
    return wanted ? this.say(`No operation is called "${text}".`) : undefined;
  }

  say(text) { this.factsPanel.textContent = text; }
}

async function startPicture() {
  const data = await (await unpack("picture-data")).json();
  const picture = new Picture(data, document.querySelector(".canvas"), document.querySelector(".facts"));
  const on = (name, action) => document.querySelector(`[data-do="${name}"]`)?.addEventListener("click", action);
  on("unfold", () => picture.level(1));
  on("fold", () => picture.level(-1));
  on("unfold-all", () => picture.level(Infinity));
  on("fold-all", () => picture.level(-Infinity));
  on("larger", () => picture.scale(picture.zoom * 1.25));
  on("smaller", () => picture.scale(picture.zoom / 1.25));
  on("actual", () => picture.scale(1));
  on("fit", () => picture.fit());
  document.querySelector("[data-do=search]")?.addEventListener("change", (event) => picture.search(event.target.value));
  let later;
  window.addEventListener("resize", () => { clearTimeout(later); later = setTimeout(() => picture.redraw(), 120); });
  if (Math.abs(picture.room() - picture.drawnFor) > 8) await picture.redraw();
  return picture;
}
