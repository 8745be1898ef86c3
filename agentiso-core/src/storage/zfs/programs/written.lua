-- Space of what was written between a dataset's previous snapshot and itself.
local written = {}
for name in pairs(args.names) do
  if zfs.exists(name) then
    written[name] = zfs.get_prop(name, "written")
  end
end
return written
