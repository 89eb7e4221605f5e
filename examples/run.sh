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

local=(--gateway "$gateway" --data-dir "$data")
bin/faas-predict deploy -f stack.yml --filter 'iris*' "${local[@]}"
answer=$(curl -fsS -d '5.1,3.5,1.4,0.2' "$gateway/function/iris")
cat <<TEXT

A prediction: 5.1,3.5,1.4,0.2 is $answer

  curl -d '5.1,3.5,1.4,0.2' $gateway/function/iris

With faas-cli:

  faas-cli login -g $gateway -u admin --password-stdin < $data/admin/basic-auth-password
  echo -n '5.1,3.5,1.4,0.2' | faas-cli invoke -g $gateway iris

TEXT

# A client is registered once; its secret is shown only then, and is for this user only.
secret=$data/demo.secret
if [ ! -s "$secret" ]; then
  bin/faas-predict client remove demo "${local[@]}" 2>/dev/null || true
  (umask 077 && bin/faas-predict client add demo --functions 'openfaas-fn:iris-*' "${local[@]}" 2>/dev/null >"$secret.part")
  mv "$secret.part" "$secret"
fi
token=$(bin/faas-predict token -g "$gateway" -u demo -s <"$secret")
answer=$(curl -fsS -H "Authorization: Bearer $token" -d '6.7,3.0,5.2,2.3' "$gateway/function/iris-protected")
refused=$(curl -s -o /dev/null -w '%{http_code}' -d '6.7,3.0,5.2,2.3' "$gateway/function/iris-protected")
cat <<TEXT
The same model for callers with a token only: 6.7,3.0,5.2,2.3 is $answer; without a token the status is $refused

  token=\$(bin/faas-predict token -g $gateway -u demo -s < $secret)
  curl -H "Authorization: Bearer \$token" -d '6.7,3.0,5.2,2.3' $gateway/function/iris-protected

TEXT
# One model in R and in Python, the one in R where R is.
models=(ozone-python)
if command -v Rscript >/dev/null; then
  models+=(ozone)
else
  echo "R is not installed, so the example in R stays out: install r-base-core"
fi
for model in "${models[@]}"; do
  bin/faas-predict deploy -f stack.yml --filter "$model" "${local[@]}"
  echo "Ozone by $model: $(curl -fsS -d '190,7.4,67' "$gateway/function/$model") ppb"
done
[ -z "${RUN_ONCE:-}" ] || exit 0
echo "Now digits, which needs packages of its own: its environment is made once."
bin/faas-predict deploy -f stack.yml --filter digits "${local[@]}" ||
  echo "digits could not be deployed; iris goes on serving."
echo "Serving on $gateway until Ctrl-C."
wait "$provider"
