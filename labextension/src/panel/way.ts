// Finds out how a page reaches the server that has the runs: by itself, or through the kernel.

import { RequestFailed, ServerTransport } from "./transport.js";

const RETRY = 2_000;

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
 * own, so the page's server must say that it is that one; while it says nothing it is asked again.
 */
export async function findWay(
  wanted: Wanted,
  baseUrl: string | null,
  waiting: (why: string) => void,
  pause: () => Promise<unknown> = () => new Promise((done) => setTimeout(done, RETRY)),
): Promise<Way> {
  const other: Way = wanted.url ? "kernel" : "none";
  if (baseUrl === null) return other;
  for (;;) {
    try {
      const { server_id } = await new ServerTransport(baseUrl).get<{ server_id?: string }>(
        "status",
      );
      return wanted.url === "" || (wanted.id !== "" && wanted.id === server_id) ? "page" : other;
    } catch (error) {
      if (!(error instanceof RequestFailed) || error.status !== null) return other;
      waiting(error.message);
      await pause();
    }
  }
}
