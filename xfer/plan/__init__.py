"""Everything that is decided and checked before anything is paid for."""
