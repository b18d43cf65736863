from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SiteStatus(_message.Message):
    __slots__ = ("study", "round", "branch", "phase", "done", "steps", "eta_s", "disk_free_bytes", "last_error", "release", "sent_unix_s", "phase_since_unix_s")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ETA_S_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    SENT_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    PHASE_SINCE_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    study: str
    round: int
    branch: str
    phase: str
    done: int
    steps: int
    eta_s: float
    disk_free_bytes: int
    last_error: str
    release: str
    sent_unix_s: float
    phase_since_unix_s: float
    def __init__(self, study: _Optional[str] = ..., round: _Optional[int] = ..., branch: _Optional[str] = ..., phase: _Optional[str] = ..., done: _Optional[int] = ..., steps: _Optional[int] = ..., eta_s: _Optional[float] = ..., disk_free_bytes: _Optional[int] = ..., last_error: _Optional[str] = ..., release: _Optional[str] = ..., sent_unix_s: _Optional[float] = ..., phase_since_unix_s: _Optional[float] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("kind", "study")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NONE: _ClassVar[Order.Kind]
        STOP: _ClassVar[Order.Kind]
        DRAIN: _ClassVar[Order.Kind]
        UNDRAIN: _ClassVar[Order.Kind]
    NONE: Order.Kind
    STOP: Order.Kind
    DRAIN: Order.Kind
    UNDRAIN: Order.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    kind: Order.Kind
    study: str
    def __init__(self, kind: _Optional[_Union[Order.Kind, str]] = ..., study: _Optional[str] = ...) -> None: ...
