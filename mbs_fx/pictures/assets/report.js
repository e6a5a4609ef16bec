// The slider over z: plans are finitely many, and everything that a plan changes is changed in place.

class Report {
  constructor(data, picture) {
    Object.assign(this, data, { picture });
    this.slider = document.querySelector("[data-do=z]");
    this.members = {};
    picture.widthOf = (box) => this.width(box);
    picture.betaOf = (macroblock) => this.plan.betas[macroblock];
    picture.listeners.push(() => this.showInPicture());
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    const step = (by) => () => this.show(Math.min(Math.max(this.at + by, 0), this.plans.length - 1));
    document.querySelector("[data-do=smaller-z]").onclick = step(-1);
    document.querySelector("[data-do=larger-z]").onclick = step(1);
    document.querySelector("[data-do=given]").onclick = () => this.show(this.given);
    document.querySelectorAll("#sweep tbody tr").forEach((row, k) => (row.onclick = () => this.show(k)));
    const underBar = () => document.documentElement.style.setProperty("--tools-top", `${document.querySelector(".bar").offsetHeight}px`);
    window.addEventListener("resize", underBar);
    underBar();
    document.querySelector("#all-widths").addEventListener("toggle", () => this.showWidths());
    this.show(this.given);
  }

  get plan() { return this.plans[this.at]; }

  show(k) {
    this.at = k;
    this.slider.value = k;
    const { plan } = this;
    for (const [name, text] of Object.entries(plan.texts)) {
      for (const each of document.querySelectorAll(`[data-show="${name}"]`)) each.textContent = text;
    }
    document.querySelector("#macroblocks tbody").innerHTML = plan.rows.map((row) => `<tr>${row.map((c) => `<td>${escaped(c)}</td>`).join("")}</tr>`).join("");
    document.querySelectorAll("#sweep tbody tr").forEach((row, i) => row.classList.toggle("present", i === k));
    this.keepInSight(document.querySelector("#sweep tr.present"));
    this.picture.atPlan = k === this.given;
    this.picture.sides = this.fields.map((field) => this.side(field));
    this.showInPicture();
    if (this.picture.chosen) this.picture.choose(this.picture.chosen);
    this.showInPlots();
    this.showWidths();
  }

  keepInSight(row) {
    const around = row.closest(".scroll"), top = row.offsetTop;
    if (top < around.scrollTop + 30 || top + row.offsetHeight > around.scrollTop + around.clientHeight) {
      around.scrollTop = top - around.clientHeight / 2;
    }
  }

  // Eq. 6: a base layer stays within the boundary on some axis.
  side(field) {
    const { boundary } = this.plan;
    if (!boundary || !field?.length) return "";
    const axes = Math.min(field.length, boundary.length), limits = boundary.slice(-axes);
    return field.slice(-axes).some((rf, i) => limits[i] === null || rf <= limits[i]) ? "base" : "enhancement";
  }

  width(box) {
    const column = this.columns[this.columnOf[box]];
    return column && [column[0], column[1 + this.at]];
  }

  change([before, after]) { return before === after ? `${before}` : `${before} → ${after}`; }

  boxesIn(key) {
    return (this.members[key] ??= this.picture.items[key].children.flatMap((c) => (/^b\d+$/.test(c) ? [Number(c.slice(1))] : this.boxesIn(c))));
  }

  showInPicture() {
    if (this.at === undefined) return;
    const { canvas, sides } = this.picture;
    canvas.querySelector("svg").classList.toggle("other", this.at !== this.given);
    const setSide = (element, side) => {
      element.classList.toggle("base", side === "base");
      element.classList.toggle("enhancement", side === "enhancement");
    };
    for (const each of canvas.querySelectorAll("g.box")) {
      const box = Number(each.dataset.box), width = this.width(box), text = each.querySelector(".width");
      setSide(each, sides[box]);
      if (width && text) {
        text.textContent = this.change(width);
        text.classList.toggle("changed", width[0] !== width[1]);
      }
    }
    for (const each of canvas.querySelectorAll(".mark[data-at]")) setSide(each, sides[Number(each.dataset.at)]);
    for (const each of canvas.querySelectorAll("text[data-m]")) {
      const beta = this.plan.betas[Number(each.dataset.m)];
      each.textContent = `β ${beta < 1 ? beta.toFixed(3) : 1}`;
    }
    for (const each of canvas.querySelectorAll("g.fold .widths")) this.showGroupWidths(each);
    const edges = this.picture.edges_now();
    canvas.querySelectorAll("path.edge").forEach((path, i) => path.classList.toggle("boundary", Boolean(edges[i]?.boundary)));
  }

  showGroupWidths(text) {
    const widths = this.boxesIn(text.closest("[data-group]").dataset.group).map((box) => this.width(box)).filter(Boolean);
    const distinct = [...new Set(widths.map((w) => this.change(w)))];
    let words = distinct.slice(0, 4).join(", ") + (distinct.length > 4 ? ", …" : "");
    if (words.length > 36) words = `${words.slice(0, 35)}…`;
    text.textContent = words;
    text.classList.toggle("changed", widths.some(([a, b]) => a !== b));
  }

  showInPlots() {
    const { fields, flops, factors, curve } = this.places;
    const draw = (name, marks) => {
      const svg = document.querySelector(`#plot-${name} svg`);
      (svg.querySelector(".marks") ?? svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "g"))).outerHTML = `<g class="marks">${marks}</g>`;
    };
    const rect = (kind, x, y, width, height) => `<rect class="${kind}" x="${x}" y="${y}" width="${width}" height="${height}"/>`;
    const [left, top, right] = fields.frame, line = fields.lines[this.at];
    draw("fields", line === null ? "" : rect("area", left, top, right - left, line - top) + rect("line", left, line - 0.7, right - left, 1.4));

    const runs = [], bottom = flops.frame[3];
    this.convs.forEach((box, i) => {
      const side = this.picture.sides[box], last = runs.at(-1);
      if (last?.side === side) last.count++;
      else runs.push({ side, first: i, count: 1 });
    });
    draw("flops", runs.filter((r) => r.side).map((r) => rect(`mark-${r.side}`, flops.first + flops.step * r.first, bottom + 1, flops.step * r.count, 5)).join(""));

    draw("factors", this.plan.betas.map((beta, m) => {
      const [a, b] = factors.bars[m], y = factors.zero + beta * (factors.one - factors.zero);
      return `<rect x="${a}" y="${y}" width="${b - a}" height="${factors.zero - y}" fill="${factors.colours[m]}"/>` +
        `<text x="${(a + b) / 2}" y="${y - 4}" text-anchor="middle">${beta < 1 ? beta.toFixed(3) : 1}</text>`;
    }).join(""));

    const band = curve.bands[this.plan.range];
    const [, upper, , lower] = curve.frame;
    draw("curve", band ? rect("area", band[0], upper, Math.max(band[1] - band[0], 1.5), lower - upper) : "");
  }

  showWidths() {
    const panel = document.querySelector("#all-widths");
    if (!panel.open) return;
    panel.querySelector("tbody").innerHTML = this.convs.map((box) => {
      const [before, after] = this.width(box);
      const cells = [this.picture.names[box], `m${this.blocks[box]}`, (this.fields[box] ?? []).join(" × "), this.picture.sides[box], this.density[box] ?? "", before, after, ...(this.errors ? [this.errors[box] ?? ""] : [])];
      return `<tr${before === after ? "" : ' class="changed"'}>${cells.map((c) => `<td>${escaped(String(c))}</td>`).join("")}</tr>`;
    }).join("");
  }
}

async function startReport() {
  const data = await (await unpack("report-data")).json();
  return new Report(data, await startPicture());
}
