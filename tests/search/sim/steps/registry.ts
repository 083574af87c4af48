import { chainSteps } from "./chains.ts";
import { faultSteps } from "./disk_faults.ts";
import { librarySteps } from "./library.ts";
import { offlineSteps } from "./offline.ts";
import { qcow2Steps } from "./offline_qcow2.ts";
import { requestSteps } from "./requests.ts";
import { stateSteps } from "./states.ts";
import type { Step } from "./step.ts";

/** Everything that a world may do. A feature adds a line, or a list. */
export const STEPS: readonly Step[] = [
  ...requestSteps,
  ...stateSteps,
  ...chainSteps,
  ...offlineSteps,
  ...qcow2Steps,
  ...librarySteps,
  ...faultSteps,
];
