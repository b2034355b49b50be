// The panel's way to the server by JupyterLab's own settings: its URL, its token, its XSRF cookie.

import type { ServerConnection } from "@jupyterlab/services";
import {
  READING,
  RequestFailed,
  Stream,
  type StreamListener,
  type Transport,
} from "../panel/transport.js";
import type { TinkerEvent } from "../panel/types.js";

type Ask = typeof ServerConnection.makeRequest;

export class LabTransport implements Transport {
  /** Told of each event of the stream, besides the one who follows it. */
  readonly listeners = new Set<(event: TinkerEvent) => void>();
  /** The server's clock when it first answered, in seconds; null before. */
  began: number | null = null;

  /** `ask` is `ServerConnection.makeRequest`. */
  constructor(
    private readonly settings: ServerConnection.ISettings,
    private readonly ask: Ask,
    private readonly Source: typeof EventSource = globalThis.EventSource,
  ) {}

  get url(): string {
    return `${this.settings.baseUrl.replace(/\/*$/, "/")}tinker`;
  }

  async get<T>(path: string): Promise<T> {
    return this.send<T>(path, { signal: AbortSignal.timeout(READING) });
  }

  async post<T>(path: string, body: unknown): Promise<T> {
    return this.send<T>(path, { method: "POST", body: JSON.stringify(body) });
  }

  async put<T>(path: string, body: unknown): Promise<T> {
    return this.send<T>(path, { method: "PUT", body: JSON.stringify(body) });
  }

  async delete<T>(path: string): Promise<T> {
    return this.send<T>(path, { method: "DELETE" });
  }

  follow(after: number, listener: StreamListener): () => void {
    const told: StreamListener = {
      onEvent: (event) => {
        listener.onEvent(event);
        for (const hear of this.listeners) hear(event);
      },
      onState: (...state) => listener.onState(...state),
      onProgress: (...progress) => listener.onProgress?.(...progress),
    };
    const stream = new Stream(`${this.url}/events`, after, told, this.source());
    return () => stream.close();
  }

  /** An EventSource sends no headers: of another origin the server must get the token by its URL. */
  private source(): typeof EventSource {
    const { appendToken, token, baseUrl } = this.settings;
    const here = globalThis.location?.href ?? baseUrl;
    const foreign = new URL(baseUrl, here).origin !== new URL(here).origin;
    if (!token || !(foreign && appendToken)) return this.Source;
    return class extends this.Source {
      constructor(url: string | URL) {
        super(`${url}&token=${encodeURIComponent(token)}`, { withCredentials: true });
      }
    };
  }

  private async send<T>(path: string, init: RequestInit): Promise<T> {
    let answer: Response;
    try {
      answer = await this.ask(`${this.url}/${path}`, init, this.settings);
    } catch {
      throw new RequestFailed(`The server at ${this.url} does not answer.`, null);
    }
    this.began ??= (Date.parse(answer.headers.get("Date") ?? "") || Date.now()) / 1000;
    const body = await answer.json().catch(() => null);
    if (answer.ok && body !== null) return body as T;
    const why = body?.detail ?? `${this.url} answered with the status ${answer.status}.`;
    throw new RequestFailed(String(why), answer.status);
  }
}
