"""Every limit and time-out of the service, each with its reason. What a job may ask for is in `worker.spec`."""

from __future__ import annotations

from dataclasses import dataclass

# --- What a client may send -------------------------------------------------------------------------------------
MAX_MESSAGE_BYTES = 4 * 1024 * 1024  # gRPC's own default; the largest honest job spec is a few kilobytes
MAX_REQUEST_ID_LENGTH = 128  # a UUID has 36; it is a key in the store
MAX_JOB_ID_LENGTH = 128  # ours have at most 47; longer ones are not looked up
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000  # about 1 MB of jobs, well below MAX_MESSAGE_BYTES
MAX_WAITING_JOBS = 1000  # beyond that a submitting loop has gone wild, and every queued job is looked at by each plan
MAX_JOB_FILE_BYTES = 1024 * 1024  # a job file is a page of text; a data set given by mistake is not read into memory
MAX_JOB_FILE_VALUES = 10_000  # aliases in YAML can multiply without end
MAX_JOB_FILE_DEPTH = 20  # a job file has four levels; a YAML alias may contain itself

# --- What the service sends -------------------------------------------------------------------------------------
EXPORT_CHUNK_BYTES = 1024 * 1024  # big enough for full speed on loopback, a quarter of MAX_MESSAGE_BYTES
EVENTS_PER_READ = 500  # a watcher's history is read in pieces, so that it never fills memory
MAX_SAMPLES = 4096  # steps of a job whose metrics are kept: more than a screen has columns, 1 MB of memory
SAMPLES_PER_READ = 500  # like EVENTS_PER_READ
MAX_STATE_MESSAGE_LENGTH = 4000  # a traceback's last lines; keeps a job far below MAX_MESSAGE_BYTES
MAX_NAME_IN_JOB_ID = 40  # job ids stay readable and make good directory names
JOB_ID_SUFFIX_LENGTH = 6  # 32**6 is a thousand million ids for each name

# --- What a run keeps for a service that is away ------------------------------------------------------------------
MAX_PENDING_REPORTS = 10_000  # a few megabytes; a job that is evaluated every second is away for hours
REPORTS_PER_NEWS = 500  # one transaction of the store, and about 200 KB

# --- Times of the service, in seconds ---------------------------------------------------------------------------
SAVE_PROGRESS_SECONDS = 2.0  # after a crash a job's shown progress is at most so old; its weights never depend on it
RETRY_STORE_SECONDS = 1.0  # a full disk is not freed faster
KEEP_RUN_SECONDS = 3600.0  # a run that has ended waits so long for a service that has died; operators sleep, sometimes
STOP_GRACE_SECONDS = 2.0  # open calls may finish when the service stops; watchers are told to come back
MAX_DATA_CHECKS = 2  # at once; each may hold a whole data file in memory
DATA_CHECK_SECONDS = 60.0  # reading a data file of some gigabytes once


@dataclass(frozen=True)
class Patience:
    """How long the service waits for runs, and how often it tries again; tests are in more of a hurry."""

    poll_seconds: float = 0.2  # progress five times a second looks live and costs a run next to nothing
    replan_seconds: float = 5.0  # a cluster may grow or shrink, and nobody tells
    launch_seconds: float = 180.0  # starting workers takes seconds; minutes mean that the cluster is broken
    news_seconds: float = 30.0  # a coordinator answers in milliseconds; one that hangs is taken for dead
    cancel_seconds: float = 15.0  # a step and a checkpoint may have to end first; then the run is ended by force
    pause_seconds: float = 300.0  # the last checkpoint of a large model on a slow disk; then the one before is the last
    close_seconds: float = 30.0  # a hung worker is killed within seconds; nobody waits longer for a run to end
    max_failed_attempts: int = 5  # in a row, none of which got further than the job was: the next would not either
    first_retry_seconds: float = 0.5  # doubled with each failed attempt, so that a broken cluster is not hammered
    max_retry_seconds: float = 10.0


PATIENCE = Patience()

# --- The client -------------------------------------------------------------------------------------------------
CALL_SECONDS = 15.0  # a call is answered in milliseconds; a service that has hung must not hang its client
CREATE_SECONDS = DATA_CHECK_SECONDS + CALL_SECONDS  # the data is checked before a job is acknowledged
VERIFY_SECONDS = 600.0  # reading some checkpoints of gigabytes from an object store
RECONNECT_SECONDS = 30.0  # how long a watching client waits for a service that is being restarted
RETRY_CONNECT_SECONDS = 0.5
