/**
 * Measures the heap allocations of the project's own code with V8's sampling profiler. The profiler
 * also counts objects that have been collected since.
 *
 * @module
 */
import { Session } from "node:inspector";

interface ProfileNode {
  readonly callFrame: { readonly functionName: string; readonly url: string };
  readonly selfSize: number;
  readonly children: readonly ProfileNode[];
}

/** Bytes between two samples. */
const SAMPLING_BYTES = 1024;

type Answer = { readonly profile?: { readonly head: ProfileNode } };

function ask(session: Session, method: string, params: object = {}): Promise<Answer> {
  return new Promise((resolve, reject) => {
    session.post(method, params, (error: Error | null, answer: object = {}) => {
      if (error === null) resolve(answer);
      else reject(error);
    });
  });
}

/** Starts to measure; the returned function ends that and returns bytes by function and file. */
export function watchAllocations(): () => Promise<Map<string, number>> {
  const session = new Session();
  session.connect();
  const started = ask(session, "HeapProfiler.startSampling", {
    samplingInterval: SAMPLING_BYTES,
    includeObjectsCollectedByMajorGC: true,
    includeObjectsCollectedByMinorGC: true,
  });
  return async () => {
    await started;
    const { profile } = await ask(session, "HeapProfiler.stopSampling");
    session.disconnect();
    if (profile === undefined) throw new Error("There is no profile");
    const bytes = new Map<string, number>();
    const visit = ({ callFrame: { functionName, url }, selfSize, children }: ProfileNode): void => {
      const file = /\/((?:src|ffi)\/.*)$/.exec(url)?.[1];
      const name = `${functionName} of ${file}`;
      if (file !== undefined) bytes.set(name, (bytes.get(name) ?? 0) + selfSize);
      for (const child of children) visit(child);
    };
    visit(profile.head);
    return bytes;
  };
}
