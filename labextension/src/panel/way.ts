// Finds out how a page reaches the server that has the runs: by itself, or through the kernel.

import { RequestFailed, ServerTransport } from "./transport.js";

const RETRY = 2_000;
// What a proxy answers in the place of a server that starts, and a server that waits for another's end.
const PASSING = new Set([502, 503, 504]);
const MOST_PROXIED = 15;

/** Jupyter's base URL for a page that it serves, with a slash at its end; null for any other. */
export function pageBaseUrl(): string | null {
  const config = globalThis.document?.getElementById("jupyter-config-data")?.textContent;
  if (!config) return null;
  const url = JSON.parse(config).baseUrl;
  return typeof url === "string" ? url.replace(/\/*$/, "/") : null;
}

export interface Wanted {
  /** The kernel's server; empty if it knows none, and the page's own is meant. */
  url: string;
  /** What that one calls itself; empty if it has not been asked. */
  id: string;
}

export type Way = "page" | "kernel" | "none";

/**
 * The way to the server that is wanted. Another server's runs are never shown in the place of its
 * own, so the page's server must say that it is that one; while it says nothing it is asked again,
 * until `signal` says that nobody wants to know any more.
 */
export async function findWay(
  wanted: Wanted,
  baseUrl: string | null,
  waiting: (why: string) => void,
  signal: AbortSignal,
  pause: (signal: AbortSignal) => Promise<unknown> = rest,
): Promise<Way> {
  const other: Way = wanted.url ? "kernel" : "none";
  if (baseUrl === null) return other;
  const transport = new ServerTransport(baseUrl);
  for (let proxied = 0; !signal.aborted; ) {
    try {
      const { server_id } = await transport.get<{ server_id?: string }>("status");
      return wanted.url === "" || (wanted.id !== "" && wanted.id === server_id) ? "page" : other;
    } catch (error) {
      if (!(error instanceof RequestFailed)) return other;
      if (error.status !== null) proxied += 1;
      if (error.status !== null && !PASSING.has(error.status)) return other;
      // The kernel's server may be another, which is well.
      if (proxied > MOST_PROXIED && other === "kernel") return other;
      if (!signal.aborted) waiting(error.message);
      await pause(signal);
    }
  }
  return other;
}

function rest(signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const timer = setTimeout(done, RETRY);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      done();
    });
  });
}
