// Says what went wrong with something that a person asked for.

import { Notification } from "@jupyterlab/apputils";

export function complain(error: unknown): void {
  const text = error instanceof Error ? error.message : String(error);
  // By default it would only be kept in the list of notifications.
  Notification.error(text, { autoClose: false });
}
