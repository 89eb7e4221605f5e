#!/usr/bin/env bash
# Starts the provider, deploys the examples, makes a real prediction and stays up until Ctrl-C.
# With RUN_ONCE=1 it leaves after the prediction.
set -euo pipefail
cd "$(dirname "$0")/.."
port=${port:-8080}
data=${data_dir:-.cache/run}
mkdir -p "$data"
data=$(cd "$data" && pwd)
gateway=http://127.0.0.1:$port

bin/faas-predict serve --port "$port" --data-dir "$data" --listen-address 127.0.0.1 &
provider=$!
trap 'kill -TERM "$provider" 2>/dev/null; wait "$provider" 2>/dev/null' EXIT
trap 'exit 0' INT TERM

for _ in $(seq 100); do
  curl -fs -o /dev/null "$gateway/healthz" && break
  kill -0 "$provider" 2>/dev/null || { echo "the provider did not start (see above)" >&2; exit 1; }
  sleep 0.1
done

bin/faas-predict deploy -f stack.yml --filter iris --gateway "$gateway" --data-dir "$data"
answer=$(curl -fsS -d '5.1,3.5,1.4,0.2' "$gateway/function/iris")
cat <<TEXT

A prediction: 5.1,3.5,1.4,0.2 is $answer

  curl -d '5.1,3.5,1.4,0.2' $gateway/function/iris

With faas-cli:

  faas-cli login -g $gateway -u admin --password-stdin < $data/admin/basic-auth-password
  echo -n '5.1,3.5,1.4,0.2' | faas-cli invoke -g $gateway iris

TEXT
[ -z "${RUN_ONCE:-}" ] || exit 0
echo "Now digits, which needs packages of its own: its environment is made once."
bin/faas-predict deploy -f stack.yml --filter digits --gateway "$gateway" --data-dir "$data" ||
  echo "digits could not be deployed; iris goes on serving."
echo "Serving on $gateway until Ctrl-C."
wait "$provider"
