// A line runs over a sound's pictures while it plays; a click on them goes to that moment.
(() => {
  const place = (audio) => {
    const sound = audio.closest(".m2d-sound");
    const line = sound && sound.querySelector(".m2d-playhead");
    const seconds = sound && Number(sound.dataset.seconds);
    if (line && seconds) line.style.left = Math.min(100, (100 * audio.currentTime) / seconds) + "%";
    if (!audio.paused && !audio.ended) requestAnimationFrame(() => place(audio));
  };
  for (const event of ["play", "seeked", "timeupdate"]) {
    // Events of media do not bubble, but are seen on their way down.
    document.addEventListener(event, (moment) => moment.target.tagName === "AUDIO" && place(moment.target), true);
  }
  document.addEventListener("click", (moment) => {
    const timed = moment.target.closest && moment.target.closest(".m2d-timed");
    if (!timed) return;
    const sound = timed.closest(".m2d-sound");
    const audio = sound.querySelector("audio");
    const box = timed.getBoundingClientRect();
    audio.currentTime = ((moment.clientX - box.left) / box.width) * Number(sound.dataset.seconds);
    place(audio);
  });
})();
