// What the page asks of the service.

const KEY = "sam_inspect key";

/** The service's answer; asks for a key where it wants one, and throws what a problem says. */
export async function ask(path, options = {}) {
  const key = localStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    await askForKey();
    return ask(path, options);
  }
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Error(problem.detail ?? `${answer.status} ${answer.statusText}`);
  }
  return answer;
}

export const json = async (path, options) => (await ask(path, options)).json();

export const send = (path, method, body) =>
  json(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

let asking = null;

function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    dialog.showModal();
    dialog.addEventListener("close", () => {
      localStorage.setItem(KEY, document.getElementById("key").value.trim());
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}

/** A picture of the service as a bitmap. */
export async function picture(path) {
  return createImageBitmap(await (await ask(path)).blob());
}

/** Calls `tell.inspection` with each answered after `last` and `tell.review` with each reviewed, for ever; `linked` with whether the service is there. */
export async function listen(tell, linked, last) {
  for (;;) {
    try {
      const answer = await ask("v1/events", { headers: last ? { "Last-Event-ID": last } : {} });
      linked(true);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; ;) {
        const { value, done } = await reader.read();
        if (done) break;
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const event of events) {
          const fields = Object.fromEntries(event.split("\n").map((line) => line.split(/: (.*)/s, 2)));
          if (!fields.data) continue;
          last = fields.id ?? last;
          tell[fields.event]?.(JSON.parse(fields.data));
        }
      }
    } catch {
      // away: tried again below
    }
    linked(false);
    await new Promise((resolve) => setTimeout(resolve, 1500));
  }
}
