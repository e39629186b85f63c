"""The command line: `engineroom probe | plan | serve | ps | logs | restart | stop | chat`."""
