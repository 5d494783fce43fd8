"""Run gcp-storage-emulator with the sockets of a server that many clients use at a time.

By default it refuses the sixth connection that waits, whose client tries again after a second, and each answer waits
40 ms for an acknowledgement.
"""

import http.server
import socketserver
import sys

from gcp_storage_emulator.__main__ import main

http.server.HTTPServer.request_queue_size = 1024
socketserver.StreamRequestHandler.disable_nagle_algorithm = True

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
