#!/usr/bin/env bash
# Run a command with a real SLURM of one node on loopback: one_node.sh FOLDER COMMAND…
# Needs root and Debian's slurm-wlm and munge, which it installs if it can; skips, saying why, where that fails.
set -euo pipefail
folder=$(realpath -m "${1:?folder for state and logs}"); shift
skip() { echo "test-slurm skipped: $1"; exit 0; }
[ "$(id -u)" = 0 ] || skip "a SLURM controller on one node needs root"
if ! command -v slurmctld >/dev/null; then
    command -v apt-get >/dev/null || skip "SLURM is not installed, and there is no apt-get"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 ||
        skip "apt-get cannot install slurm-wlm and munge"
fi
host=$(hostname -s)
rm -rf "$folder"; mkdir -p "$folder"/{state,spool,log} /run/munge
getent hosts "$host" >/dev/null || echo "127.0.0.1 $host" >>/etc/hosts
cat >"$folder/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=2
ReturnToService=2
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=60 State=UP
CONF
[ -f /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 2>/dev/null
chown munge:munge /etc/munge/munge.key /run/munge; chmod 400 /etc/munge/munge.key
munge -n >/dev/null 2>&1 || su -s /bin/sh munge -c /usr/sbin/munged
export SLURM_CONF=$folder/slurm.conf
stop() { for daemon in slurmd slurmctld; do kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true; done; }
trap stop EXIT
slurmctld
slurmd
for _ in $(seq 30); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 1; done
sinfo
"$@"
