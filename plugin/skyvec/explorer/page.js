"use strict";
// Texts go in as text, never as HTML; ids are strings, since numbers here end at 2^53.
const explorer = (() => {
  const at = (id) => document.getElementById(id);
  const make = (tag, text = "", kind = "") => {
    const node = document.createElement(tag);
    node.textContent = text;
    if (kind) node.className = kind;
    return node;
  };
  let ask = () => {};

  const picture = (one, then = () => {}) => {
    const frame = make("span", "", "picture");
    const none = () => { frame.replaceChildren(make("span", one.why || "no picture")); then(); };
    if (!one.picture) { none(); return frame; }
    const image = make("img");
    image.alt = `Picture of object ${one.id}`;
    image.onerror = none;
    image.onload = () => { image.dataset.seen = one.id; then(); };
    image.src = one.picture;
    frame.append(image);
    return frame;
  };

  const tiles = (all) => at("tiles").replaceChildren(...all.map((one) => {
    const tile = make("button", "", "tile");
    tile.type = "button";
    tile.dataset.id = one.id;
    tile.append(picture(one));
    if (one.similarity) {
      tile.append(make("b", one.similarity), make("span", `distance ${one.distance}`));
    }
    tile.append(make("span", one.id, "id"));
    tile.title = `${one.id}, RA ${one.ra}, Dec ${one.dec}`;
    tile.onclick = () => ask({ find: one.id });
    return tile;
  }));

  const heading = (text, how = "") => {
    at("near").hidden = !text;
    at("near").firstElementChild.textContent = text;
    at("how").hidden = !how;
    at("how").textContent = how;
    at("clear").hidden = true;
  };

  const show = {
    page(page) {
      at("title").textContent = `${page.extension}: ${page.objects} objects`;
      at("about").textContent = `${page.catalog}, by ${page.model} (fingerprint ${page.fingerprint})`;
      const notes = [...page.notes, `skyvec ${page.version}. Nothing on this page comes from another machine.`];
      at("notes").replaceChildren(...notes.map((note) => make("p", note)));
      at("colour").replaceChildren(...page.colours.map((name) => new Option(name, name)));
      at("colour").value = page.colour;
    },
    legend(legend) {
      const own = make("div", legend.name);
      const parts = [own];
      if (legend.ramp) {
        const ramp = make("div", "", "ramp");
        ramp.style.background = `linear-gradient(90deg, ${legend.ramp.join(", ")})`;
        const ends = make("div", "", "ends");
        ends.append(make("span", legend.low), make("span", legend.high));
        parts.push(ramp, ends);
      } else {
        const list = make("ul");
        for (const [label, shade, count] of legend.labels) {
          const item = make("li"), dot = make("i");
          dot.style.background = shade;
          item.append(dot, `${label} (${count})`);
          list.append(item);
        }
        parts.push(list);
      }
      if (legend.none) parts.push(make("div", `grey: ${legend.none}`));
      at("legend").replaceChildren(...parts);
    },
    object(one) {
      const look = make("div", "", "look"), list = make("dl");
      const rows = [["object", one.id], ["right ascension", one.ra], ["declination", one.dec],
                    ["HEALPix", one.pixel], ...(one.values || [])];
      for (const [name, value] of rows) {
        const cell = make("dd", value, name === "object" ? "mono" : "");
        list.append(make("dt", name), cell);
      }
      // Neighbours are sought once this is on the screen: the search takes all cores.
      const seen = () => requestAnimationFrame(() => setTimeout(() => ask({ seen: one.id })));
      look.append(picture(one, seen), list);
      at("object").replaceChildren(look);
      at("object").hidden = false;
      at("object").dataset.id = one.id;
      at("status").hidden = true;
      heading("Neighbours", "searching ...");
      at("tiles").replaceChildren();
      delete at("tiles").dataset.of;
    },
    neighbours(all) {
      heading("Neighbours", "");
      tiles(all);
      at("tiles").dataset.of = at("object").dataset.id;
    },
    how(text) { at("how").hidden = false; at("how").textContent = text; },
    selection(chosen) {
      at("object").hidden = true;
      at("status").hidden = chosen !== null;
      if (chosen === null) {
        heading("");
        at("status").textContent = "Click a point, or select many: box and lasso are among the tools above a map.";
        tiles([]);
        return;
      }
      heading(`${chosen.count} objects selected`, chosen.some.length ? "some of them:" : "");
      at("clear").hidden = false;
      tiles(chosen.some);
    },
    marks(all) {
      for (const [kind, planes] of Object.entries(all)) {
        for (const [plane, { x, y }] of Object.entries(planes)) {
          const source = Bokeh.documents[0].get_model_by_name(`${kind}-${plane}`);
          source.data = { x: x.map((v) => v ?? NaN), y: y.map((v) => v ?? NaN) };
        }
      }
    },
    status(text) { at("status").hidden = false; at("status").textContent = text; },
  };

  const told = (what) => {
    for (const [name, value] of Object.entries(what)) if (show[name]) show[name](value);
    document.documentElement.dataset.turn = what.turn;
  };

  const controls = () => {
    at("colour").onchange = () => ask({ colour: at("colour").value });
    at("find").onchange = () => { if (at("find").value.trim()) ask({ find: at("find").value.trim() }); };
    at("clear").onclick = () => ask({ clear: true });
  };

  // Served: what is asked and told travels on the wire.
  const served = (wire) => {
    let turn = 0;
    ask = (what) => { wire.asked = JSON.stringify({ ...what, turn: ++turn }); };
    const hear = () => { if (wire.told) told(JSON.parse(wire.told)); };
    wire.properties.told.change.connect(hear);
    controls();
    hear();
  };

  // Exported: everything is in the page.
  const exported = (doc, data) => {
    const model = (name) => doc.get_model_by_name(name);
    const points = model("points"), xy = points.data, ids = data.ids;
    const place = new Map(ids.map((id, row) => [id, row]));
    let colour = data.page.colour, turn = 0;
    const say = (what) => told({ ...what, turn: ++turn });
    const facts = (row) => ({
      id: ids[row], ra: data.ra[row], dec: data.dec[row], pixel: data.pixel[row],
      picture: data.pictures[row] || "", why: data.why,
      values: data.columns[colour].texts.length ? [[colour, data.columns[colour].texts[row]]] : [],
    });
    const places = (rows) => Object.fromEntries(["likeness", "sky"].map((plane) => [plane, {
      x: rows.map((row) => xy[`${plane}_x`][row]), y: rows.map((row) => xy[`${plane}_y`][row]),
    }]));
    const look = (row) => {
      const near = data.near[row];
      const marks = { chosen: places([row]), near: places(near.map(([which]) => which)) };
      say({ marks, object: facts(row), neighbours: near.map(([which, similarity, distance]) => (
        { ...facts(which), similarity, distance })), how: data.how });
    };
    const recolour = () => {
      const column = data.columns[colour];
      points.data = { ...xy, colour: column.codes.map((code) => data.shades[colour][code]) };
      say({ legend: column.legend });
    };
    ask = (what) => {
      if (what.colour) { colour = what.colour; recolour(); }
      if (what.find) {
        if (place.has(what.find)) look(place.get(what.find));
        else say({ status: `Object ${what.find} is not among the ${ids.length} of this page.` });
      }
      if (what.clear) points.selected.indices = [];
    };
    points.selected.properties.indices.change.connect(() => {
      const rows = Array.from(points.selected.indices);
      const seen = rows.filter((row) => data.pictures[row]);
      say({ selection: rows.length
        ? { count: String(rows.length), some: [...seen, ...rows.filter((row) => !data.pictures[row])].slice(0, 12).map(facts) }
        : null });
    });
    const tapped = (plane, x, y) => {
      const view = model(plane), xs = xy[`${plane}_x`], ys = xy[`${plane}_y`];
      const kx = view.inner_width / (view.x_range.end - view.x_range.start);
      const ky = view.inner_height / (view.y_range.end - view.y_range.start);
      let best = -1, away = data.reach;
      for (let row = 0; row < ids.length; row++) {
        const d = Math.hypot((xs[row] - x) * kx, (ys[row] - y) * ky);
        if (d < away) { best = row; away = d; }
      }
      if (best >= 0) look(best); else say({ status: "No object there." });
    };
    controls();
    say({ page: data.page, legend: data.columns[colour].legend });
    return { tapped };
  };

  const self = {};
  const begin = () => {
    const doc = (window.Bokeh?.documents ?? [])[0];
    const data = at("data");
    const ready = doc && (data ? doc.get_model_by_name("points") : doc.get_model_by_name("wire"));
    if (!ready) { setTimeout(begin, 30); return; }
    if (data) Object.assign(self, exported(doc, JSON.parse(data.textContent)));
    else served(ready);
  };
  document.addEventListener("DOMContentLoaded", begin);
  return self;
})();
window.skyvecExplorer = explorer;
