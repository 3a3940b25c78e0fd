"use strict";
// Loads the page again when there is a newer one, for as long as there is a server to ask.
const shownVersion = `"${document.querySelector("meta[name=version]").content}"`;
let unanswered = 0;

async function ask() {
  try {
    const answer = await fetch(location.href, { method: "HEAD", cache: "no-store" });
    unanswered = 0;
    if (answer.ok && answer.headers.get("ETag") !== shownVersion) location.reload();
  } catch {
    unanswered += 1;
  }
  if (unanswered < 5) setTimeout(ask, 1000);
}
ask();
