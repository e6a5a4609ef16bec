// A picture that folds and unfolds.  The drawings of boxes and folded groups come ready; Graphviz, the same
// WebAssembly that placed them in Python, finds new places whenever a group is opened or closed.

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

class Picture {
  constructor(data, canvas, facts) {
    Object.assign(this, data, { canvas, factsPanel: facts, zoom: 1, listeners: [] });
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

  async level(step) {
    const stages = [new Set(), ...this.stages.map((s) => new Set(s))];
    const current = stages.findLastIndex((s) => [...s].every((key) => this.open.has(key)));
    const next = Math.min(Math.max(current + step, 0), stages.length - 1);
    const before = this.open;
    this.open = stages[next];
    if (!(await this.redraw())) this.open = before;
  }

  async reveal(key) {
    for (const up of this.ancestors(key)) this.open.add(up);
    if (await this.redraw()) {
      this.choose(key);
      this.element(key)?.scrollIntoView({ block: "center", inline: "center" });
    }
  }

  element(key) {
    const find = (kind, value) => this.canvas.querySelector(`[data-${kind}="${CSS.escape(value)}"]`);
    return /^b\d+$/.test(key) ? find("box", key.slice(1)) : find("group", key);
  }

  edges_now() {
    const found = new Map();
    for (const [a, b, main] of this.edges) {
      const tail = this.shown(a), head = this.shown(b);
      if (tail === head) continue;
      const old = found.get(`${tail}>${head}`) ?? { tail, head, main: false, boundary: false };
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

  async redraw() {
    const shown = this.keys.filter((key) => this.shown(key) === key && !this.open.has(key));
    if (shown.length > this.most) {
      this.say(`That would show ${shown.length} boxes, more than the ${this.most} that can be laid out. Fold other parts first.`);
      return false;
    }
    this.graphviz ??= startGraphviz(await (await unpack("graphviz")).arrayBuffer());
    const edges = this.edges_now();
    const roots = this.keys.filter((key) => !this.items[key].parent);
    const wires = edges.map((e) => `${this.number[e.tail]}->${this.number[e.head]}${e.main ? "[weight=20]" : ""};`);
    let found;
    try {
      found = (await this.graphviz)(`digraph{${this.settings}${roots.map((r) => this.statement(r)).join("")}${wires.join("")}}`);
    } catch (error) {
      this.graphviz = undefined;
      this.say(`This cannot be laid out (${error.message}). Fold other parts first.`);
      return false;
    }
    this.paint(found, edges);
    return true;
  }

  paint(found, edges) {
    const [, , width, height] = found.bb.split(",").map(Number);
    const names = {}, frames = [], pieces = [], curves = {};
    for (const each of found.objects ?? []) {
      if (each.name.startsWith("cluster_")) {
        const [left, bottom, right, top] = each.bb.split(",").map(Number);
        frames.push([this.keys[each.name.slice(8)], left, height - top, right - left, top - bottom]);
      } else {
        const key = (names[each._gvid] = this.keys[each.name]), item = this.items[key];
        const [x, y] = each.pos.split(",").map(Number);
        pieces.push(`<g transform="translate(${x - item.w / 2},${height - y - item.h / 2})">${item.svg}</g>`);
      }
    }
    for (const each of found.edges ?? []) curves[`${names[each.tail]}>${names[each.head]}`] = this.curve(each.pos, height);
    frames.sort((a, b) => this.items[a[0]].depth - this.items[b[0]].depth);
    const lines = edges.map((e) => `<path class="edge${e.boundary ? " boundary" : ""}" d="${curves[`${e.tail}>${e.head}`]}"/>`);
    const svg = this.canvas.querySelector("svg");
    svg.dataset.width = width;
    svg.dataset.height = height;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.innerHTML = [this.markers, ...frames.map((f) => this.frame(...f)), ...lines, ...frames.map((f) => this.title(...f)), ...pieces].join("");
    this.dress();
  }

  curve(text, height) {
    const points = text.split(" ").map((p) => p.split(","));
    const at = (p) => `${p.at(-2)},${height - p.at(-1)}`;
    const [first, ...rest] = points.filter((p) => p[0] !== "e" && p[0] !== "s").map(at);
    const tip = points.find((p) => p[0] === "e");
    return `M${first} C${rest.join(" ")}${tip ? ` L${at(tip)}` : ""}`;
  }

  frame(key, x, y, width, height) {
    const item = this.items[key], mark = item.parent ? "" : ` data-m="${item.m}"`;
    return `<g class="${item.frame}" data-group="${escaped(key)}"${mark} transform="translate(${x},${y})"><rect class="frame" width="${width}" height="${height}" rx="8"${item.stroke}/></g>`;
  }

  title(key, x, y, width) {
    const item = this.items[key], mark = item.parent ? "" : ` data-m="${item.m}"`;
    const note = item.note ? `<text class="beta" x="${width - 26}" y="17" text-anchor="end"${mark}>${escaped(item.note)}</text>` : "";
    return `<g class="heading" data-group="${escaped(key)}" transform="translate(${x},${y})"><text class="name" x="12" y="17">${escaped(item.name)}</text>${note}<path class="sign" d="M${width - 19},13 h8"/></g>`;
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
    const lines = this.element(key)?.querySelector("title")?.textContent.split("\n") ?? [];
    const inputs = this.inputs[Number(key.slice(1))] ?? [];
    const link = (i) => `<button data-reveal="b${i}">${escaped(this.names[i])}</button>`;
    const more = inputs.length > 12 ? ` and ${inputs.length - 12} more` : "";
    this.factsPanel.innerHTML = `<b>${escaped(this.names[Number(key.slice(1))])}</b>${lines.map((l) => `<div>${escaped(l)}</div>`).join("")}` +
      (inputs.length ? `<div>reads ${inputs.slice(0, 12).map(link).join("")}${more}</div>` : "");
    for (const button of this.factsPanel.querySelectorAll("[data-reveal]")) button.onclick = () => this.reveal(button.dataset.reveal);
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
  on("larger", () => picture.scale(picture.zoom * 1.25));
  on("smaller", () => picture.scale(picture.zoom / 1.25));
  on("actual", () => picture.scale(1));
  on("fit", () => picture.fit());
  document.querySelector("[data-do=search]")?.addEventListener("change", (event) => picture.search(event.target.value));
  return picture;
}
