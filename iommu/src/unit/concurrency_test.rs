//! Several vCPUs and device threads at once.
