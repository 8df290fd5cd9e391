#!/usr/bin/env bash
# What one worker of a TPU slice is asked over ssh. The lines that begin with "biggan-worker" are
# for the program that asks. `launch/tpu_vm` copies this file to every worker and calls it there.
#
#   bash biggan-worker.sh setup HOST:/SHARE MOUNT REPOSITORY REVISION PYTHON EXTRA
#   bash biggan-worker.sh start NAME LOGS COMMAND...
#   bash biggan-worker.sh status NAME
#   bash biggan-worker.sh stop NAME SIGNAL
#   bash biggan-worker.sh follow NAME LOGS
set -euo pipefail

UV=0.13.8 # Brings the Python that is asked for; the images of older TPUs have 3.10.
home=$HOME/.biggan-launch
code=$home/code
env=$home/env

tell() { printf 'biggan-worker %s %s\n' "$(hostname)" "$*"; }

fail() {
  printf 'biggan-worker.sh: %s: %s\n' "$(hostname)" "$*" >&2
  exit 1
}

setup() {
  local nfs=$1 mount=$2 repository=$3 revision=$4 python=$5 extra=$6 commit
  mkdir -p "$home"
  exec 9>"$home/lock"
  flock -n 9 || fail "another setup is at work here"
  install_packages
  if ! mountpoint -q "$mount"; then
    sudo mkdir -p "$mount"
    sudo mount -t nfs "$nfs" "$mount"
  fi
  if [[ $(cat "$home/ready" 2>/dev/null || true) != "$repository $revision $python $extra" ]]; then
    local job
    for job in "$home"/jobs/*; do # Code is not changed under a running program.
      if [[ $(state_of "$job") == running ]]; then
        fail "${job##*/} runs here with other code; stop it first"
      fi
    done
    rm -f "$home/ready"
    fetch "$repository" "$revision"
    "$home/uv/bin/uv" venv --quiet --clear --python "$python" "$env"
    "$home/uv/bin/uv" pip install --quiet --python "$env/bin/python" \
      --constraints "$code/constraints.txt" "${code}[$extra]"
    printf '%s' "$repository $revision $python $extra" >"$home/ready"
  fi
  "$env/bin/biggan" --version
  commit=$(git -C "$code" rev-parse HEAD)
  tell ready "$commit"
}

install_packages() {
  if ! { command -v mount.nfs && command -v git && python3 -c 'import ensurepip'; } &>/dev/null; then
    # A new machine may be at its own updates, which hold the lock.
    sudo apt-get -q -o DPkg::Lock::Timeout=600 update
    sudo DEBIAN_FRONTEND=noninteractive \
      apt-get -q -y -o DPkg::Lock::Timeout=600 install nfs-common git python3-venv
  fi
  if [[ ! -x $home/uv/bin/uv ]]; then
    python3 -m venv "$home/uv"
    "$home/uv/bin/pip" install --quiet --disable-pip-version-check "uv==$UV"
  fi
}

fetch() {
  local repository=$1 revision=$2 found
  git init --quiet "$code"
  [[ $revision =~ ^[0-9a-f]{40}$ ]] || revision=refs/tags/$revision
  git -C "$code" fetch --quiet --depth=1 "$repository" "$revision"
  git -C "$code" checkout --quiet --detach --force FETCH_HEAD
  found=$(git -C "$code" rev-parse HEAD)
  if [[ $revision != refs/* && $found != "$revision" ]]; then
    fail "asked for $revision, got $found"
  fi
}

start() {
  local name=$1 logs=$2
  local job=$home/jobs/$name
  shift 2
  [[ -e $home/ready ]] || fail "there is no code here yet: setup comes first"
  [[ $(state_of "$job") != running ]] || fail "$name runs here already"
  umask 0 # All workers write into one folder, perhaps as different users.
  rm -rf "$job"
  mkdir -p "$job" "$logs"
  cd "$code"
  # A session of its own, without the terminal's files: the end of ssh does not end it.
  PATH=$env/bin:$PATH PYTHONUNBUFFERED=1 setsid bash "$HOME/biggan-worker.sh" supervise "$job" "$@" \
    </dev/null >>"$logs/$(hostname).log" 2>&1 &
  for _ in {1..300}; do
    if [[ -e $job/pid ]]; then
      tell started
      return
    fi
    sleep 0.1
  done
  fail "$name did not start within 30 seconds"
}

# Runs the command and writes down its exit code, also when the machine is being shut down.
supervise() {
  local job=$1 child ended interrupted
  shift
  trap 'interrupted=1' TERM INT HUP # The command gets its own, and a second one would kill it.
  printf '==== %s: %s\n' "$(date -u +%FT%TZ)" "${*@Q}"
  "$@" &
  child=$!
  write "$child $(boot)" "$job/pid"
  while true; do
    interrupted=
    ended=0
    wait "$child" || ended=$?
    [[ -n $interrupted ]] || break
  done
  printf '==== %s: ended with code %s\n' "$(date -u +%FT%TZ)" "$ended"
  write "$ended" "$job/code"
}

write() {
  printf '%s\n' "$1" >"$2.part"
  mv "$2.part" "$2"
}

boot() { cat /proc/sys/kernel/random/boot_id; } # After another, a process id is somebody else's.

pid_of() { cut -d ' ' -f 1 "$1/pid"; }

alive() {
  local pid boot
  read -r pid boot <"$1/pid"
  [[ $boot == "$(boot)" ]] && kill -0 "$pid" 2>/dev/null
}

# Prints idle, running, "ended CODE", or lost: started, and gone without a code.
state_of() {
  local job=$1
  if [[ -e $job/code ]]; then
    echo "ended $(cat "$job/code")"
  elif [[ ! -e $job/pid ]]; then
    echo idle
  elif alive "$job"; then
    echo running
  else
    sleep 1 # Between its end and the writing of its code.
    if [[ -e $job/code ]]; then
      echo "ended $(cat "$job/code")"
    else
      echo lost
    fi
  fi
}

status() { tell "$(state_of "$home/jobs/$1")"; }

stop() {
  local job=$home/jobs/$1
  if [[ $(state_of "$job") == running ]]; then
    kill -s "$2" "$(pid_of "$job")"
  fi
  tell asked
}

# The end of the log, and what comes to it as long as the command runs.
follow() {
  local job=$home/jobs/$1 log
  log=$2/$(hostname).log
  if [[ $(state_of "$job") == running ]]; then
    tail -n 50 -F --pid="$(pid_of "$job")" "$log"
  else
    tail -n 50 "$log"
  fi
}

main() {
  case ${1-} in
    setup) setup "${@:2}" ;;
    start) start "${@:2}" ;;
    supervise) supervise "${@:2}" ;;
    status) status "${@:2}" ;;
    stop) stop "${@:2}" ;;
    follow) follow "${@:2}" ;;
    *) fail "unknown action '${1-}'" ;;
  esac
}

# On one line: this file may be replaced by a copy of itself while it runs.
main "$@"; exit
