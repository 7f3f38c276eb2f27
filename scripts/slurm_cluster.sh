#!/usr/bin/env bash
# A Slurm cluster of two nodes, n1 and n2, on this machine, for tests:
#
#   scripts/slurm_cluster.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf
#   scripts/slurm_cluster.sh stop FOLDER
#
# Both nodes are real: each has a slurmd of its own and is allotted jobs by a real slurmctld. It runs as root or as any
# user, whose jobs alone it then takes. FOLDER must be new, short (it holds a socket) and readable to munge's user.
# What it needs is installed by scripts/install_services.sh.
set -euo pipefail

usage() {
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

free_ports() {
  local base
  while :; do
    base=$((20000 + RANDOM % 20000))
    for port in "$base" $((base + 1)) $((base + 2)); do
      if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then continue 2; fi
    done
    echo "$base"
    return
  done
}

start() {
  local folder=$1 host user base munge=()
  host=$(hostname -s) user=$(id -un) base=$(free_ports)
  mkdir -p "$folder"/{state,n1,n2,munge}
  chmod 755 "$folder"
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
  if [ "$user" = root ]; then
    chown -R munge "$folder/munge"
    munge=(runuser -u munge --)
  fi
  "${munge[@]}" munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"

  cat >"$folder/slurm.conf" <<CONF
ClusterName=tutelage
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# A requeued job begins again only when the credential of its last start has expired.
AuthInfo=socket=$folder/munge/socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
# Nodes have what is written here, not what this machine has.
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + 1)) CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + 2)) CPUs=2 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ReturnToService=2
KillWait=3
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout=30
CONF
  export SLURM_CONF=$folder/slurm.conf
  slurmctld -c
  slurmd -N n1
  slurmd -N n2
  for _ in $(seq 150); do
    if [ "$(sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort -u | wc -l)" = 2 ]; then
      echo "two nodes are up: export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.2
  done
  echo "the nodes did not come up; see $folder/*.log" >&2
  stop "$folder"
  exit 1
}

# Ends what the pid files name, the daemons of nodes with their jobs' steps first.
stop() {
  local folder=$1 file pid
  SLURM_CONF=$folder/slurm.conf scancel --signal=KILL --full --user="$(id -un)" 2>/dev/null || true
  SLURM_CONF=$folder/slurm.conf scancel --user="$(id -un)" 2>/dev/null || true
  for file in "$folder"/n1.pid "$folder"/n2.pid "$folder"/slurmctld.pid "$folder"/munge/pid; do
    [ -f "$file" ] || continue
    pid=$(<"$file")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 100); do
      kill -0 "$pid" 2>/dev/null || continue 2
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

[ $# = 2 ] || usage
export PATH=$PATH:/usr/sbin:/sbin
case $1 in
  start) start "$(realpath -m "$2")" ;;
  stop) stop "$(realpath -m "$2")" ;;
  *) usage ;;
esac
