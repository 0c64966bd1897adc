#!/usr/bin/env bash
# The pod of the CronJob `nightly`: runs jobs/nightly.py for a date on the Ray cluster at RAY_API and exits as it does.
#   JOB_NAME=nightly-29401234 RAY_API=http://recipe-batch-head-svc:8265 nightly.sh --source … --table … --editor … --canary …
# Flags go to jobs/nightly.py. DEADLINE_S: seconds after which the run is stopped.
#
# The date is yesterday's as seen from when the run was due, not from the clock: a pod that is started again after
# midnight goes on with the same night. A CronJob names its jobs NAME-MINUTES since 1970; a person names the night:
#   kubectl create job nightly-2026-11-24 --from=cronjob/nightly
set -euo pipefail

: "${JOB_NAME:?is not set; give the name of the Kubernetes Job}"
: "${RAY_API:?is not set; give the address of the Ray cluster, http://HOST:8265}"

if [[ $JOB_NAME =~ ([0-9]{4}-[0-9]{2}-[0-9]{2})$ ]]; then
  night=${BASH_REMATCH[1]}
elif [[ $JOB_NAME =~ -([0-9]{7,9})$ ]]; then
  night=$(date --utc --date "@$((BASH_REMATCH[1] * 60 - 86400))" +%F)
else
  echo "error: JOB_NAME '$JOB_NAME' ends neither with a date nor with a CronJob's minutes;" \
    "name the job NAME-YYYY-MM-DD" >&2
  exit 64
fi

# One submission a Job: a pod that takes over from another waits for the run that is under way.
exec python jobs/submit.py --address "$RAY_API" --id "$JOB_NAME" --deadline-s "${DEADLINE_S:-14400}" \
  -- python /app/jobs/nightly.py --date "$night" "$@"
