//! Files as read-only memory.
