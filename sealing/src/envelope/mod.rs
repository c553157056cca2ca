//! The sealed envelope: one AWS Encryption SDK message, format version 2, suite 0x0478, framed body.
