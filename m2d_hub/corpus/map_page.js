// What is pointed at, or chosen in a list, is told beside the map; buttons and a drag show a part of it.
(() => {
  const sounds = JSON.parse(document.getElementById("sounds").textContent);
  const map = document.getElementById("map");
  const places = [...map.querySelectorAll(".sound")];
  const panel = document.getElementById("shown");
  const [width, height] = [map.viewBox.baseVal.width, map.viewBox.baseVal.height];
  const REACH = 28; // pixels around a sound
  let shown = null, pinned = false, zoom = 1, left = 0, top = 0, drag = null;

  const element = (tag, text, parent) => {
    const made = document.createElement(tag);
    if (text) made.textContent = text; // never as HTML: names of files are anybody's
    if (parent) parent.append(made);
    return made;
  };
  const picture = (sound, parent) => {
    if (!sound.picture) return;
    const image = element("img", "", parent);
    image.src = sound.picture;
    image.alt = "Spectrogram of its first seconds";
  };
  const show = (index) => {
    if (index === shown) return;
    if (shown !== null) places[shown].classList.remove("shown");
    shown = index;
    places[index].classList.add("shown");
    const sound = sounds[index];
    panel.replaceChildren();
    picture(sound, panel);
    element("h3", sound.name, panel);
    element("p", `Cluster ${sound.cluster}`, panel);
    const tags = element("ul", "", panel);
    for (const [label, score] of sound.tags) {
      const row = element("li", "", tags);
      element("span", label, row);
      element("span", score.toFixed(2), row);
    }
    if (sound.twins) element("p", `Nearly the same as ${sound.twins} other${sound.twins > 1 ? "s" : ""}; see Duplicates.`, panel);
  };
  const nearest = (moment) => {
    const matrix = map.getScreenCTM();
    const x = (moment.clientX - matrix.e) / matrix.a, y = (moment.clientY - matrix.f) / matrix.d;
    let best = null, least = REACH / matrix.a;
    sounds.forEach((sound, index) => {
      const away = Math.hypot(sound.x - x, sound.y - y);
      if (away < least) [best, least] = [index, away];
    });
    return best;
  };
  const view = () => {
    left = Math.min(Math.max(left, 0), width - width / zoom);
    top = Math.min(Math.max(top, 0), height - height / zoom);
    map.setAttribute("viewBox", `${left} ${top} ${width / zoom} ${height / zoom}`);
    map.style.setProperty("--scale", 1 / zoom);
    map.classList.toggle("near", zoom > 1);
  };
  const zoomTo = (wanted) => {
    const x = shown === null ? left + width / zoom / 2 : sounds[shown].x;
    const y = shown === null ? top + height / zoom / 2 : sounds[shown].y;
    zoom = Math.min(Math.max(wanted, 1), 32);
    [left, top] = [x - width / zoom / 2, y - height / zoom / 2];
    view();
  };
  document.getElementById("nearer").addEventListener("click", () => zoomTo(zoom * 2));
  document.getElementById("farther").addEventListener("click", () => zoomTo(zoom / 2));
  document.getElementById("whole").addEventListener("click", () => zoomTo(1));

  map.addEventListener("pointerdown", (moment) => {
    drag = { x: moment.clientX, y: moment.clientY, left, top };
  });
  map.addEventListener("pointermove", (moment) => {
    if (drag && zoom > 1) {
      const matrix = map.getScreenCTM();
      left = drag.left - (moment.clientX - drag.x) / matrix.a;
      top = drag.top - (moment.clientY - drag.y) / matrix.d;
      return view();
    }
    const index = nearest(moment);
    if (!pinned && index !== null) show(index);
  });
  addEventListener("pointerup", () => { drag = null; });
  map.addEventListener("click", (moment) => {
    const index = nearest(moment);
    pinned = index !== null;
    if (pinned) show(index);
  });

  const only = (cluster) => places.forEach((place, index) =>
    place.classList.toggle("faded", cluster !== null && sounds[index].cluster !== cluster));
  for (const details of document.querySelectorAll("details")) {
    const cluster = Number(details.dataset.cluster) || null;
    details.addEventListener("mouseenter", () => only(cluster));
    details.addEventListener("mouseleave", () => only(null));
    details.addEventListener("toggle", () => { // pictures only of what is looked at
      for (const button of details.querySelectorAll("button:not(:has(img))")) {
        picture(sounds[button.dataset.sound], button);
        button.prepend(...button.querySelectorAll("img"));
      }
    });
  }
  document.addEventListener("click", (moment) => {
    const button = moment.target.closest("button[data-sound]");
    if (!button) return;
    pinned = true;
    show(Number(button.dataset.sound));
    document.querySelector("main").scrollIntoView({ block: "nearest" });
  });
})();
