import { SharedStateError } from "../../ffi/assert.ts";

/**
 * A driver, or whoever uses one, broke the contract of `src/driver/driver.ts`. It ends the process:
 * no disk contains it, so that a test cannot miss it.
 */
export class ContractViolation extends SharedStateError {
  override readonly name = "ContractViolation";
}
