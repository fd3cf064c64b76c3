"""How Windows says that it is about to end the program, and how that is made to wait.

closed window       an event of the console, in a thread of its own: the program is ended as soon as
                    that thread returns, and Python makes a SIGBREAK of it and returns at once
log-off, shutdown   a message to each window. Console programs get an event instead, but not those
                    that have loaded user32.dll, and libraries do that (Microsoft on HandlerRoutine,
                    which says to make a hidden window for it)

Windows waits for about 5 seconds either way (SPI_GETHUNGAPPTIMEOUT, SPI_GETWAITTOKILLTIMEOUT), at a
shutdown with the reason on the screen, and then ends the program all the same; the run then goes
on from the checkpoint before. Not measured on Windows: tested with stand-ins for its libraries.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import wintypes
from typing import Any

Ask = Callable[[str], None]

CONSOLE_EVENTS = {2: "its window was closed", 5: "log-off", 6: "shutdown"}
"""CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT."""

WM_DESTROY, WM_CLOSE, WM_QUERYENDSESSION, WM_ENDSESSION = 0x02, 0x10, 0x11, 0x16
ENDSESSION_LOGOFF = 0x80000000
WHY_IT_WAITS = "Training is being saved"
TITLE = "discord-lora"
"""Windows lists the programs that it waits for by their windows' titles."""

# On Windows WINFUNCTYPE; the difference is how the stack is cleaned up, on 32 bits only.
_FUNCTION: Any = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)
_RESULT = ctypes.c_ssize_t
_MESSAGE = (wintypes.HWND, wintypes.UINT, wintypes.WPARAM, wintypes.LPARAM)
ConsoleHandler: Any = _FUNCTION(wintypes.BOOL, wintypes.DWORD)
WindowProcedure: Any = _FUNCTION(_RESULT, *_MESSAGE)

_callbacks: list[object] = []  # Windows may still be in one when its run is over


class WindowClass(ctypes.Structure):
    """WNDCLASSW."""

    _fields_ = (
        ("style", wintypes.UINT),
        ("lpfnWndProc", WindowProcedure),
        ("cbClsExtra", ctypes.c_int),
        ("cbWndExtra", ctypes.c_int),
        ("hInstance", wintypes.HINSTANCE),
        ("hIcon", wintypes.HANDLE),
        ("hCursor", wintypes.HANDLE),
        ("hbrBackground", wintypes.HANDLE),
        ("lpszMenuName", wintypes.LPCWSTR),
        ("lpszClassName", wintypes.LPCWSTR),
    )


def ends_of_windows() -> tuple[Any, Any]:
    """Windows' libraries of console functions and of windows; None, None elsewhere."""
    if sys.platform == "win32":
        kernel32, user32 = ctypes.WinDLL("kernel32"), ctypes.WinDLL("user32")
        # A handle is 64 bits wide, and ctypes takes what it knows nothing of for 32.
        user32.CreateWindowExW.restype = wintypes.HWND
        user32.CreateWindowExW.argtypes = (
            wintypes.DWORD, wintypes.LPCWSTR, wintypes.LPCWSTR, wintypes.DWORD,
            *(ctypes.c_int,) * 4,
            wintypes.HWND, wintypes.HMENU, wintypes.HINSTANCE, wintypes.LPVOID,
        )  # fmt: skip
        user32.DefWindowProcW.restype = _RESULT
        user32.DefWindowProcW.argtypes = user32.PostMessageW.argtypes = _MESSAGE
        user32.ShutdownBlockReasonCreate.argtypes = (wintypes.HWND, wintypes.LPCWSTR)
        user32.ShutdownBlockReasonDestroy.argtypes = (wintypes.HWND,)
        kernel32.GetModuleHandleW.restype = wintypes.HMODULE
        return kernel32, user32
    return None, None


@contextmanager
def kept_from_ending(ask: Ask, kernel32: Any, user32: Any) -> Iterator[None]:
    """Hear of each end that is near, and let it wait until this context is left.

    Args:
        ask: is told why, in a thread of Windows or of the window.
        kernel32, user32: as `ends_of_windows` gives them; with None nothing is done.
    """
    if kernel32 is None:
        yield
        return
    saved = threading.Event()

    def handle(event: int) -> bool:
        if event not in CONSOLE_EVENTS:
            return False  # Ctrl+C and Ctrl+Break go on to Python
        ask(CONSOLE_EVENTS[event])
        saved.wait()
        return True

    callback = ConsoleHandler(handle)
    _callbacks.append(callback)
    window = _HiddenWindow(user32, kernel32.GetModuleHandleW(None), ask, saved)
    kernel32.SetConsoleCtrlHandler(callback, 1)
    window.open()
    try:
        yield
    finally:
        saved.set()
        window.close()
        kernel32.SetConsoleCtrlHandler(callback, 0)


class _HiddenWindow:
    """A window that is never shown, in a thread that does nothing but wait for its messages."""

    def __init__(self, user32: Any, program: int, ask: Ask, saved: threading.Event) -> None:
        self._user32, self._program, self._ask, self._saved = user32, program, ask, saved
        self._handle: int | None = None
        self._made = threading.Event()
        self._thread = threading.Thread(target=self._live, name="hidden window", daemon=True)

    def open(self) -> None:
        """Where Windows refuses the window, the console's events are all there is."""
        self._thread.start()
        self._made.wait(5)

    def close(self) -> None:
        if self._handle:
            self._user32.PostMessageW(self._handle, WM_CLOSE, 0, 0)
            self._thread.join(5)

    def _live(self) -> None:
        procedure = WindowProcedure(self._receive)
        _callbacks.append(procedure)
        # A class of its own for each run of one process: its procedure is this run's.
        name = f"{TITLE}-{id(self)}"
        kind = WindowClass(lpfnWndProc=procedure, hInstance=self._program, lpszClassName=name)
        if self._user32.RegisterClassW(ctypes.byref(kind)):
            self._handle = self._user32.CreateWindowExW(
                0, name, TITLE, 0, 0, 0, 0, 0, None, None, self._program, None
            )
        self._made.set()
        message = wintypes.MSG()
        while self._handle and self._user32.GetMessageW(ctypes.byref(message), None, 0, 0) > 0:
            self._user32.DispatchMessageW(ctypes.byref(message))

    def _receive(self, window: int, message: int, first: int, second: int) -> int:
        """The window's procedure: `first` and `second` are wParam and lParam."""
        if message == WM_QUERYENDSESSION:
            self._user32.ShutdownBlockReasonCreate(window, WHY_IT_WAITS)
            return 1  # it may end; others may object, and then training simply goes on
        if message == WM_ENDSESSION:
            if first:
                self._ask("log-off" if second & ENDSESSION_LOGOFF else "shutdown")
                self._saved.wait()
            self._user32.ShutdownBlockReasonDestroy(window)
            return 0
        if message == WM_DESTROY:
            self._user32.PostQuitMessage(0)
            return 0
        return int(self._user32.DefWindowProcW(window, message, first, second))
