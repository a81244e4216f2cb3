"""Two processes test at a time: each has one thread, and so have the processes it starts."""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
