// Takes licences away through license-gateway: the call, its deadline, its failure, and what to do then.
//
//     node out/unassign.js ADDRESS SERVICE CUSTOMER_ID...
//
// Exits with 0: applied; 2: not applied, nothing was changed; 3: unknown or partial, look before anything is repeated.
// What it needs and how to make the stubs is in docs/clients.md.

import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';

import {
  LicensingServiceClient,
  PartialOutcome,
  UnassignLicensesRequest,
  type UnassignLicensesResponse,
} from './gen/central/licensing/v1/licensing';
import { ErrorInfo, RetryInfo } from './gen/google/rpc/error_details';
import { Status } from './gen/google/rpc/status';

const DEADLINE_MS = 60_000; // for all of it, waits and repeats included

async function main([address, service, ...customerIds]: string[]): Promise<number> {
  // By `create`, not by a literal: the contract grows, and a new field must not break this.
  const request = UnassignLicensesRequest.create({
    scope: { $case: 'includeCustomers', value: { customerIds } },
    services: [service],
    reason: 'TICKET-42',
    // Every repeat of this request has it, whoever repeats: it acts once. Keep it where a restart of yours finds it.
    requestId: randomUUID(),
  });
  const deadline = Date.now() + DEADLINE_MS;
  // TLS: credentials.createSsl(ca, key, certificate).
  const client = new LicensingServiceClient(address, credentials.createInsecure(), {
    'grpc.service_config': readFileSync(`${__dirname}/../../service-config.json`, 'utf8'),
  });
  try {
    for (;;) {
      const answer = await unassign(client, request, deadline);
      if (!(answer instanceof Failure)) {
        console.log('applied', answer.operationId);
        return 0;
      }
      console.log(answer.code, answer.reason, answer.outcome, answer.operationId);

      // A wait is named only where waiting helps. Who waits past the deadline learns nothing more.
      const { code, reason, outcome, waitMs } = answer;
      // What the gateway did not answer is asked again: by the id it gives the first answer.
      if (code === 'UNAVAILABLE' && reason === '-' && Date.now() + 1000 < deadline) {
        await sleep(1000);
        continue;
      }
      if (outcome !== 'not_applied' || waitMs === undefined || Date.now() + waitMs >= deadline) return conclude(answer);
      console.log(`again in ${(waitMs / 1000).toFixed(1)} s`);
      await sleep(waitMs);
    }
  } finally {
    client.close();
  }
}

function unassign(client: LicensingServiceClient, request: UnassignLicensesRequest, deadline: number) {
  return new Promise<UnassignLicensesResponse | Failure>((resolve) => {
    client.unassignLicenses(request, new Metadata(), { deadline }, (error, response) => {
      resolve(error ? new Failure(error) : response);
    });
  });
}

/** Says what is to be done by a person or by the program above this one. */
function conclude({ outcome, partial }: Failure): number {
  if (outcome === 'not_applied') {
    console.log('nothing was changed');
    return 2;
  }
  if (partial) {
    console.log('applied:', ...partial.appliedCustomerIds);
    console.log('may be repeated:', ...partial.notAppliedCustomerIds);
    console.log('look first:', ...partial.unknownCustomerIds);
  } else {
    console.log("look at the customers' licences before repeating");
  }
  return 3;
}

/** What the details of a failed call say. */
class Failure {
  readonly code: string;
  // Without our details something between here and the gateway answered, and nobody knows what was done.
  reason = '-';
  outcome = 'unknown';
  operationId = '-';
  waitMs?: number;
  partial?: PartialOutcome;

  constructor(error: ServiceError) {
    this.code = status[error.code];
    const [bytes] = error.metadata.get('grpc-status-details-bin');
    if (!(bytes instanceof Buffer)) return;
    for (const { typeUrl, value } of Status.decode(bytes).details) {
      switch (typeUrl.split('/').pop()) {
        case 'google.rpc.ErrorInfo': {
          const info = ErrorInfo.decode(value);
          if (info.domain !== 'license-gateway') break;
          this.reason = info.reason;
          this.outcome = info.metadata['outcome'] ?? 'unknown';
          this.operationId = info.metadata['operation_id'] ?? '-';
          break;
        }
        case 'google.rpc.RetryInfo': {
          const delay = RetryInfo.decode(value).retryDelay;
          if (delay) this.waitMs = delay.seconds * 1000 + delay.nanos / 1e6;
          break;
        }
        case 'central.licensing.v1.PartialOutcome':
          this.partial = PartialOutcome.decode(value);
          break;
      }
    }
  }
}

main(process.argv.slice(2)).then((code) => {
  process.exitCode = code;
});
