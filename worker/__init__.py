"""The service: Celery worker, dispatch, embedded mode and command line."""
