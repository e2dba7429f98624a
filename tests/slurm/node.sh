#!/usr/bin/env bash
# node.sh up|down FOLDER [NAME...]: a whole Slurm on this machine, for tests. All its state is in
# FOLDER. Each NAME is a node with another slurmd; without one there is the node localhost.
# Needs root and the packages slurmctld, slurmd, slurm-client and munge; systemd is not needed.
set -euo pipefail
action=$1 home=$2
shift 2
nodes=("${@:-localhost}")
export SLURM_CONF=$home/slurm.conf

configure() {
  mkdir -p "$home"/{state,spool,log,pid}
  dd if=/dev/urandom of="$home/key" bs=1024 count=1 status=none
  chmod 400 "$home/key"
  # Two GPUs that only the scheduler believes in: any character device will do for a file.
  for node in "${nodes[@]}"; do
    echo "NodeName=$node Name=gpu Type=test File=/dev/tty[0-1] Flags=nvidia_gpu_env"
  done > "$home/gres.conf"
  cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=27817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is queued again waits until its credential has expired; the default is two minutes.
AuthInfo=socket=$home/munge.socket,cred_expire=5
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool/%n
SlurmctldPidFile=$home/pid/slurmctld
SlurmdPidFile=$home/pid/slurmd_%n
SlurmctldLogFile=$home/log/slurmctld
SlurmdLogFile=$home/log/slurmd_%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=1
ReturnToService=2
KillWait=30
MaxArraySize=1001
SlurmdParameters=config_overrides
GresTypes=gpu
$(for i in "${!nodes[@]}"; do
    echo "NodeName=${nodes[$i]} NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((27818 + i))" \
      "CPUs=4 RealMemory=8000 Gres=gpu:test:2 State=UNKNOWN"
  done)
PartitionName=usual Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9
CONF
}

up() {
  configure
  munged --force --key-file="$home/key" --socket="$home/munge.socket" \
    --pid-file="$home/pid/munged" --log-file="$home/log/munged" --seed-file="$home/seed"
  slurmctld -c
  for node in "${nodes[@]}"; do
    mkdir -p "$home/spool/$node"
    slurmd -N "$node"
  done
  for _ in $(seq 100); do
    idle=$(sinfo --noheader --Node --states=idle --partition=usual 2> /dev/null | wc -l)
    if [ "$idle" = "${#nodes[@]}" ]; then return; fi
    sleep 0.2
  done
  echo "Slurm did not start; its logs:" >&2
  tail "$home"/log/* >&2
  exit 1
}

down() {
  for file in "$home"/pid/slurmd_* "$home/pid/slurmctld" "$home/pid/munged"; do
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid"
    for _ in $(seq 100); do kill -0 "$pid" 2> /dev/null || continue 2; sleep 0.1; done
    kill -KILL "$pid" || true # slurmd may wait for a job that has just ended
  done
}

"$action"
