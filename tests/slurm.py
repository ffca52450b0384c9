"""A real Slurm on one machine, for tests: munge, controller and node on loopback, everything else below one folder."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = "munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo"
CONF = Path("/etc/slurm/slurm.conf")  # the only place where the steps of a job look
CONFIG = """
ClusterName=sieve
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={next}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobAcctGatherFrequency=0
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1
SchedulerType=sched/builtin
ReturnToService=2
MinJobAge=300
KillWait=2
OverTimeLimit=0
MpiDefault=none
PropagateResourceLimits=NONE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    "Why no Slurm can be brought up here; '' if it can."
    if os.geteuid():
        return "only root can bring up Slurm's daemons"
    if CONF.exists():
        return f"{CONF} is there: this machine has a Slurm of its own"
    lacking = [name for name in PROGRAMS if not shutil.which(name, path=_PATH)]
    return f"Slurm's packages are not installed: {', '.join(lacking)}" if lacking else ""


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports() -> int:  # the first of two that nobody has
    for port in range(16817, 17817, 2):
        with socket.socket() as a, socket.socket() as b:
            try:
                a.bind(("127.0.0.1", port))
                b.bind(("127.0.0.1", port + 1))
                return port
            except OSError:
                continue
    raise OSError("no free ports")


class Slurm:
    "The daemons, started; `env` points the client programs there; `stop` ends them by their own processes."

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, []
        host, port = socket.gethostname().split(".")[0], _free_ports()
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        CONF.parent.mkdir(exist_ok=True)
        CONF.write_text(CONFIG.format(host=host, port=port, next=port + 1, folder=folder))
        self.env = {"PATH": _PATH}
        self._munge()
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D")
        self._wait(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"), "no idle node")

    def _munge(self) -> None:
        subprocess.run("install -d -o munge -g munge -m 755 /run/munge".split(), check=True)
        if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
            return  # one is running already
        self._start(
            "runuser", "-u", "munge", "--", shutil.which("munged", path=_PATH), "--foreground", "--force"
        )
        self._wait(lambda: not subprocess.run(["munge", "-n"], capture_output=True).returncode, "no munge")

    def _start(self, program: str, *arguments) -> None:
        command = [shutil.which(program, path=_PATH), *map(str, arguments)]
        log = open(self.folder / f"{program}.out", "w")
        environment = os.environ | self.env
        self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))

    def _wait(self, done, what: str, seconds: float = 20) -> None:
        deadline = time.time() + seconds
        while not done():
            if time.time() > deadline:
                said = "\n".join(p.read_text()[-500:] for p in sorted(self.folder.glob("*.log")))
                self.stop()
                raise OSError(f"{what} after {seconds} s:\n{said}")
            time.sleep(0.2)

    def ask(self, *command: str) -> str:
        "What a client program prints."
        done = subprocess.run(command, env=os.environ | self.env, capture_output=True, text=True, timeout=60)
        return done.stdout

    def queue(self) -> list[str]:
        "Jobs that wait or run."
        return self.ask("squeue", "--noheader", "--states=PD,R,CG", "--format=%i %T").split("\n")[:-1]

    def stop(self) -> None:
        "End the daemons."
        CONF.unlink(missing_ok=True)
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            process.wait(20)
